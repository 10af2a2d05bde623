"""What a device keeps: played on the CPU with torch's operations, and on a GPU where there is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.layers import device_largest, kernels
from fedmef_dist.layers.device_largest import SAMPLE, pack_on_device, unpack_on_device
from fedmef_dist.layers.kernels import patterns, portable
from fedmef_dist.layers.largest import Selector, pack_largest, unpack_largest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SELECTIONS = ["exact", "sampled", "carried"]


@pytest.fixture(autouse=True)
def _a_device_on_the_cpu(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(device_largest, "kernels_for", lambda tensor: portable)


def check(tensors, count, selection):
    """Each of the tensors (R, n), one after another, is kept as on the CPU, to the bit."""
    selector = Selector(selection)
    for rows in tensors:
        bitmap, values, kept = pack_largest(rows, count, selector)
        mine_bitmap, mine = pack_on_device(rows.to(DEVICE), count, selector.on_device)
        assert torch.equal(mine_bitmap.cpu()[:, : bitmap.shape[1]], bitmap)
        for row, own, there in zip(patterns(mine.cpu()), kept, patterns(values).split(kept), strict=True):
            assert torch.equal(row[:own], there)
            assert not row[own:].any()
        back = unpack_on_device(mine_bitmap, mine, rows.shape[1]).cpu()
        assert torch.equal(patterns(back), patterns(unpack_largest(bitmap, values, kept, rows.shape[1])))


def tensors_of(kind, shape, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        rows = torch.randn(shape, generator=generator).to(dtype)
        if kind == "relu":
            rows.relu_()
        elif kind == "ties":
            rows = (2 * rows).round() / 2
        elif kind == "zeros":
            rows.zero_()
        elif kind == "extremes":
            rows[:, ::2] = 1
            rows[:, ::3] = float("inf")
            rows[:, ::5] = torch.finfo(dtype).max
            rows[:, ::7] = torch.finfo(dtype).smallest_normal / 2
        yield rows


@pytest.mark.parametrize("selection", ["exact", "carried"])
@settings(max_examples=25)
@given(
    kind=st.sampled_from(["normal", "relu", "ties", "zeros", "extremes"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70) | st.sampled_from([1024, 2500])),
    dtype=st.sampled_from(DTYPES),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_the_kept_are_those_of_the_cpu(selection, kind, shape, dtype, share, seed):
    check(tensors_of(kind, shape, dtype, seed), max(round(share * shape[1]), 1), selection)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_large_tensors_are_kept_as_on_the_cpu(selection):
    generator = torch.Generator().manual_seed(1)
    plain = torch.randn(2, 3 * SAMPLE, generator=generator)
    skewed, few = plain.clone(), plain.relu()
    skewed[0, ::3] *= 100  # the sample sees every third element
    few[1] *= few[1] > 2
    check([plain, skewed, 0.98 * plain, few, plain], plain.shape[1] // 10, selection)


def test_forgetting_leaves_the_memory_where_it_is():
    selector = Selector("carried").on_device
    rows = torch.randn(1, 100, device=DEVICE)
    pack_on_device(rows, 50, selector)
    carried = selector._carried
    assert carried.item() > 0
    selector.forget()
    assert selector._carried is carried
    assert carried.item() == 0


def test_no_shape_depends_on_a_number():
    """On a device without data whatever asks for a number raises."""
    for selection in SELECTIONS:
        selector, rows = Selector(selection), torch.empty(2, 3 * SAMPLE, device="meta")
        bitmap, values, places = pack_largest(rows, 1000, selector)
        assert bitmap.shape == (2, 3 * SAMPLE // 8)
        assert places == [values.numel() // 2] * 2 == ([1000] * 2 if selection == "exact" else [1010] * 2)
        assert unpack_largest(bitmap, values, places, rows.shape[1]).shape == rows.shape
    assert kernels.kernels_for(rows) is portable
