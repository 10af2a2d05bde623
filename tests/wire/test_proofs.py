import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.wire.layer_encoding import NUMBERS, decode_values, encode_values
from fedmef_dist.wire.messages import as_decoded
from fedmef_dist.wire.proofs import Proofs, same_bits


def test_a_check_sees_what_was_there_when_it_was_asked_and_its_error_is_raised():
    proofs, seen = Proofs(), []
    tensor, other = torch.tensor([1.0, 2.0]), torch.tensor([3])
    proofs.later(lambda *arrays: seen.append([array.tolist() for array in arrays]), tensor, other, tensor)
    tensor.zero_()
    proofs.settle()
    assert seen == [[[1, 2], [3], [1, 2]]]

    def fail(array):
        raise ValueError(f"not {array[0]}")

    proofs.later(fail, torch.tensor([7]))
    with pytest.raises(ValueError, match="not 7"):
        proofs.settle()
    proofs.settle()  # of nothing


def test_many_checks_are_all_made():
    proofs, seen = Proofs(), []
    for number in range(30):
        proofs.later(lambda array: seen.append(int(array[0])), torch.tensor([number]))
    proofs.settle()
    assert seen == list(range(30))


def test_bits_are_compared_but_not_those_of_a_nan():
    nan = np.array([0x7FC00001, 0x3F800000], np.int32).view(np.float32)
    assert same_bits(nan, np.array([np.nan, 1], np.float32))
    assert not same_bits(np.array([0.0], np.float32), np.array([-0.0], np.float32))
    assert not same_bits(np.array([1.0], np.float32), np.array([np.nan], np.float32))
    # One other number is enough, beside such that are the same and beside a NaN that is another one.
    assert not same_bits(np.array([1.0, 2.0], np.float32), np.array([1.0, 3.0], np.float32))
    assert not same_bits(nan, np.array([np.nan, 2], np.float32))


numbers = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1e-30, -1e-45, 65520.0, 3e38])


@pytest.mark.parametrize("name", ["fp16", "int8"])
@given(layers=st.lists(st.lists(numbers, max_size=9), min_size=1, max_size=3))
def test_what_a_device_adds_up_is_what_decoding_gives(name, layers):
    number = NUMBERS[name]
    values = torch.tensor([value for layer in layers for value in layer])
    expected = [decode_values(encode_values(np.array(layer, np.float32), number), number) for layer in layers]
    found = as_decoded(values, [len(layer) for layer in layers], number)
    assert same_bits(found.numpy(), np.concatenate(expected).astype(np.float32))
