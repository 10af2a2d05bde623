import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from thread_group import ThreadLevel, on_ranks

from fedmef_dist.cluster.short_sum import all_reduce_short, pack, unpack

WIDTHS = [4, 5, 6, 8]


def summed(rows):
    """The sums of these rows, one a rank, and the bytes a value."""

    def work(group):
        values = rows[group.rank].clone()
        width = all_reduce_short(values, ThreadLevel(group))
        return values, width

    results = on_ranks(len(rows), work)
    for values, _ in results:
        assert torch.equal(values, rows.sum(0))
    return results[0]


@given(st.sampled_from(WIDTHS), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.integers(1, 3))
def test_unpacking_is_the_inverse_of_packing(width, numbers, rows):
    shift = 64 - 8 * width
    values = (torch.tensor(numbers) >> shift).expand(rows, -1).contiguous()  # as large as fits
    packed = pack(values, width)
    assert packed.shape == (rows, width * len(numbers))
    assert torch.equal(unpack(packed, width), values)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 3000), st.lists(st.integers(0, 63), min_size=1, max_size=4), st.integers(0, 99)
)
def test_a_short_sum_is_the_sum(ranks, count, bits, seed):
    """Over blocks whose values have so many bits, up to those that wrap."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-(2**63), 2**63 - 1, (ranks, count), generator=generator)
    for start in range(0, count, 32):
        rows[:, start : start + 32] >>= bits[start // 32 % len(bits)]
    summed(rows)


@pytest.mark.parametrize(
    ("value", "there", "back"),
    [
        (2**30 - 1, 4, 4),
        (2**30, 4, 5),
        (-(2**30), 4, 4),
        (-(2**30) - 1, 4, 5),
        (2**31, 5, 5),
        (2**38 - 1, 5, 5),
        (2**38, 5, 6),
        (-(2**39), 5, 6),
        (2**39, 6, 6),
        (2**46, 6, 8),
        (2**47, 8, 8),
        (2**62, 8, 8),
        (2**63 - 1, 8, 4),  # the sum wraps to -2
    ],
)
def test_there_a_width_holds_the_values_of_two_ranks_and_back_their_sum(value, there, back):
    values, travelled = summed(torch.full((2, 2048), value))
    assert travelled == (there + back) / 2
    assert int(values[0]) == (2 * value + 2**63) % 2**64 - 2**63


def test_one_large_value_costs_its_block_only():
    rows = torch.ones(2, 10 * 1024, dtype=torch.int64)  # 128 blocks of 80 values
    rows[0, 5000] = -(2**60)
    assert summed(rows)[1] == pytest.approx((128 * 4 + 2 * 8) / 128)  # 127 blocks fill up to 128, and one to two
