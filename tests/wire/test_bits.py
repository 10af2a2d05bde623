import pytest

from fedmef_dist.wire.bits import index_bits


@pytest.mark.parametrize(("choices", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8)])
def test_bits_that_tell_choices_apart(choices, bits):
    assert index_bits(choices) == bits
