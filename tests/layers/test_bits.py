import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


def test_values_are_kept_in_order_and_put_back_in_place():
    flat = torch.tensor([5.0, -1.0, 0.0, 2.0])
    chosen = torch.tensor([True, False, False, True])
    bitmap, values = bits.pack_values(flat, chosen)
    assert bitmap.tolist() == [1 + 8]
    assert values.tolist() == [5, 2]
    assert bits.unpack_values(bitmap, values, 4).tolist() == [5, 0, 0, 2]


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


def test_ties_go_to_the_lower_position():
    flat = torch.tensor([1.0, -2.0, 2.0, 0.5, 2.0])
    assert bits.choose_largest(flat, 2).tolist() == [False, True, True, False, False]
    assert bits.choose_largest(flat, 4).tolist() == [True, True, True, False, True]


def test_positive_and_negative_zero_tie():
    assert bits.choose_largest(torch.tensor([-0.0, 0.0, -0.0]), 2).tolist() == [True, True, False]


def test_nan_is_larger_than_everything():
    flat = torch.tensor([1.0, float("nan"), float("inf"), 3.0])
    assert bits.choose_largest(flat, 1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@given(values=st.lists(st.integers(-6, 6), min_size=1, max_size=40), data=st.data())
def test_the_chosen_are_exactly_the_largest(dtype, values, data):
    count = data.draw(st.integers(0, len(values)))
    flat = torch.tensor(values, dtype=dtype)
    expected = sorted(range(len(values)), key=lambda position: (-abs(values[position]), position))[:count]
    assert bits.choose_largest(flat, count).nonzero().flatten().tolist() == sorted(expected)
