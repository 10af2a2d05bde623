import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._prims_common import suggest_memory_format

from fedmef_dist.layers import bits

FLAGS = st.lists(st.booleans(), max_size=70).map(lambda flags: torch.tensor(flags, dtype=torch.bool))


def test_bits_are_little_endian_within_a_byte():
    flags = torch.tensor([1, 0, 1, 0, 0, 0, 0, 1, 0, 1], dtype=torch.bool)
    assert bits.pack(flags).tolist() == [1 + 4 + 128, 2]


@given(FLAGS)
def test_unpack_is_the_inverse_of_pack(flags):
    packed = bits.pack(flags)
    assert packed.dtype == torch.uint8
    assert packed.numel() == (flags.numel() + 7) // 8
    assert torch.equal(bits.unpack(packed, flags.numel()), flags)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 3, 3), (4, 3, 1, 1)])
def test_channels_last_is_flattened_without_a_copy(shape):
    tensor = torch.randn(shape).to(memory_format=torch.channels_last)
    flat = bits.flatten(tensor)
    assert flat.data_ptr() == tensor.data_ptr()
    back = bits.like(flat, tensor.shape, bits.is_channels_last(tensor))
    assert torch.equal(back, tensor)
    assert back.is_contiguous(memory_format=torch.channels_last)


def test_contiguous_is_flattened_without_a_copy_and_others_with_one():
    tensor = torch.arange(6.0).view(2, 3)
    assert bits.flatten(tensor).data_ptr() == tensor.data_ptr()
    assert bits.flatten(tensor.t()).tolist() == [0, 3, 1, 4, 2, 5]


def test_where_both_orders_are_one_the_strides_tell_which_is_meant():
    x = torch.randn(2, 4, 1, 1)
    assert not bits.is_channels_last(x)
    assert bits.is_channels_last(x.contiguous(memory_format=torch.channels_last).to(memory_format=torch.channels_last))


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4), st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_any_strides_mean_what_torch_takes_them_for(shape, strides):
    tensor = torch.empty(4 * 3 * 12 + 1).as_strided(shape, strides)
    assert bits.means_channels_last(tensor) == (suggest_memory_format(tensor) == torch.channels_last)
