import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.layers.kernels import cpu
from fedmef_dist.layers.largest import SAMPLE, TOLERANCE, Selector, pack_largest, unpack_largest

NAN, INF = float("nan"), float("inf")
FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def kept(rows, count, selection="exact"):
    """What is restored of the rows, and how many each of them keeps."""
    bitmap, values, counts = pack_largest(rows, count, Selector(selection))
    assert values.numel() == sum(counts)
    assert bitmap.shape == (rows.shape[0], (rows.shape[1] + 7) // 8)
    return unpack_largest(bitmap, values, counts, rows.shape[1]), counts


def positions(values, count, dtype=torch.float32):
    restored, _ = kept(torch.tensor([values], dtype=dtype), count)
    return restored[0].nonzero().flatten().tolist()


def test_ties_go_to_the_lower_position():
    assert positions([1.0, -2.0, 2.0, 0.5, 2.0], 2) == [1, 2]
    assert positions([1.0, -2.0, 2.0, 0.5, 2.0], 4) == [0, 1, 2, 4]
    assert positions([3.0] * 20, 11) == list(range(11))


def test_zeros_are_left_out():
    assert kept(torch.tensor([[-0.0, 0.0, 3.0], [0.0, -1.0, 2.0]]), 2)[1] == [1, 2]


def test_nan_is_larger_than_infinity_and_that_than_everything():
    x = [1.0, -NAN, 3.0, -INF, 4.0]
    assert positions(x, 1) == [1]
    assert positions(x, 2) == [1, 3]
    assert positions(x, 3) == [1, 3, 4]


def test_nothing_and_everything():
    rows = torch.tensor([[1.0, -2.0]])
    assert kept(rows, 0)[0].tolist() == [[0, 0]]
    assert kept(rows, 2)[0].tolist() == [[1, -2]]


@pytest.mark.parametrize("dtype", FLOATS)
@given(values=st.lists(st.integers(-6, 6), min_size=1, max_size=70), data=st.data())
def test_the_kept_are_exactly_the_largest(dtype, values, data):
    count = data.draw(st.integers(0, len(values)))
    order = sorted(range(len(values)), key=lambda position: (-abs(values[position]), position))
    expected = sorted(position for position in order[:count] if values[position])
    assert positions(values, count, dtype) == expected


@pytest.mark.parametrize("dtype", FLOATS)
@given(shape=st.tuples(st.integers(1, 4), st.integers(1, 50)), seed=st.integers(0, 99), data=st.data())
def test_every_row_keeps_its_own_largest(dtype, shape, seed, data):
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu().to(dtype)
    count = data.draw(st.integers(0, shape[1]))
    restored, counts = kept(rows, count)
    alone = [kept(row.unsqueeze(0), count)[0][0] for row in rows]
    assert torch.equal(restored, torch.stack(alone))
    assert counts == [min(count, int(row.count_nonzero())) for row in rows]
    chosen = restored != 0
    assert torch.equal(restored[chosen], rows[chosen])


def activations(seed, scale=1.0):
    return torch.randn(1, 5 * SAMPLE, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("selection", ["exact", "sampled", "carried"])
@pytest.mark.parametrize("share", [0.7, 0.5, 0.1, 0.01])
def test_the_share_is_within_the_tolerance(selection, share):
    rows = activations(0)
    count = round(share * rows.numel())
    selector = Selector(selection)
    for seed in range(3):
        counts = pack_largest(activations(seed), count, selector)[2]
        assert counts[0] == pytest.approx(count, rel=TOLERANCE if selection != "exact" else 0)


@pytest.mark.parametrize("selection", ["sampled", "carried"])
def test_the_quick_selections_need_not_find_the_exact_threshold(selection, monkeypatch):
    rows, selector = activations(0), Selector(selection)
    count = rows.numel() // 2
    exact = kept(rows, count)[0]
    first = pack_largest(rows, count, selector)
    assert (first[2] == [count]) == (selection == "carried")
    looked_at, find = [], cpu.find_threshold
    monkeypatch.setattr(cpu, "find_threshold", lambda row, rank: looked_at.append(row.numel()) or find(row, rank))
    second = activations(1)
    restored = unpack_largest(*pack_largest(second, count, selector), rows.shape[1])
    assert max(looked_at, default=0) < rows.numel() / 4
    smallest_kept = restored[restored != 0].abs().min()
    assert torch.equal(restored != 0, second.abs() >= smallest_kept)
    assert smallest_kept == pytest.approx(float(exact[exact != 0].abs().min()), rel=0.05)


@pytest.mark.parametrize("selection", ["sampled", "carried"])
def test_where_the_guess_is_wrong_the_exact_threshold_is_taken(selection):
    selector = Selector(selection)
    rows = activations(0)
    pack_largest(rows, rows.numel() // 2, selector)
    # The sample sees every fifth element; here those are the large ones.
    other = activations(1, scale=0.1)
    other[0, ::5] *= 100
    assert pack_largest(other, rows.numel() // 2, selector)[2] == [rows.numel() // 2]


def test_a_forgotten_threshold_leaves_no_trace():
    first, second = activations(0), activations(1)
    count = first.numel() // 2
    fresh, used = Selector("carried"), Selector("carried")
    pack_largest(first, count, used)
    carried = pack_largest(second, count, used)[2]
    used.forget()
    assert pack_largest(second, count, used)[2] == pack_largest(second, count, fresh)[2] != carried


@settings(max_examples=20)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.5, 0.3, 0.1]), channels=st.sampled_from([3, 32, 96]))
def test_a_sample_does_not_miss_channels(seed, share, channels):
    """Channels of different scale, as activations have them, keep the sampled share within the tolerance."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(channels, generator=generator)
    rows = (torch.randn(3 * SAMPLE // channels, channels, generator=generator) * scales).view(1, -1)
    count = round(share * rows.numel())
    assert kept(rows, count, "sampled")[1][0] == pytest.approx(count, rel=TOLERANCE)
