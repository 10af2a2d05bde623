import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.sparsity import selection
from fedmef_dist.sparsity.selection import largest, row_largest, row_ranks, smallest


def test_ties_go_to_the_lower_position():
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    assert largest(scores, 2).tolist() == [1, 2]
    assert largest(scores, 4).tolist() == [1, 2, 3, 4]
    assert smallest(torch.tensor([0.0, 0.0, 5.0, 0.0]), 2).tolist() == [0, 1]


def test_nothing_and_everything():
    scores = torch.tensor([2.0, -torch.inf, 1.0])
    assert largest(scores, 0).tolist() == []
    assert largest(scores, 3).tolist() == [0, 1, 2]


def test_rows_are_chosen_one_by_one():
    scores = torch.tensor([[1.0, 2.0, 2.0], [9.0, 8.0, 7.0]])
    assert sorted(row_largest(scores, 2).tolist()) == [1, 2, 3, 4]
    assert row_largest(scores, 1).tolist() == [1, 3]


def test_ties_go_to_the_lower_position_in_long_rows_too():
    # Up to sixteen numbers are sorted stably whether that is asked for or not.
    scores = (torch.arange(200) % 2).float().view(2, 100)
    assert row_largest(scores, 3).tolist() == [1, 3, 5, 101, 103, 105]
    assert row_ranks(scores)[:, 1::2].tolist() == [list(range(50))] * 2
    assert row_ranks(scores)[:, ::2].tolist() == [list(range(50, 100))] * 2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
def test_largest_is_a_stable_sort(values, data):
    count = data.draw(st.integers(0, len(values)))
    wanted = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    assert largest(torch.tensor(values, dtype=torch.float32), count).tolist() == wanted


def test_not_a_number_counts_as_infinite_and_the_count_is_kept():
    nan, inf = float("nan"), float("inf")
    assert largest(torch.tensor([1.0, nan, 3.0, nan, inf]), 2).tolist() == [1, 3]
    assert largest(torch.tensor([1.0, nan, 3.0, -inf]), 3).tolist() == [0, 1, 2]
    assert smallest(torch.tensor([1.0, nan, -inf, 3.0]), 3).tolist() == [0, 1, 2]


def test_ranks_within_rows_by_hand():
    nan = float("nan")
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -0.0, nan, 5.0]])
    assert row_ranks(scores).tolist() == [[3, 0, 2, 1], [2, 3, 0, 1]]
    assert row_ranks(torch.tensor([[torch.inf, nan, -torch.inf]])).tolist() == [[0, 1, 2]]


def test_equal_scores_are_drawn_and_others_are_not():
    scores = torch.tensor([5.0, 0.0, 0.0, 7.0, 0.0, 0.0])
    draws = [largest(scores, 3, np.random.default_rng(seed)).tolist() for seed in range(20)]
    assert {tuple(draw) for draw in draws} == {(0, 1, 3), (0, 2, 3), (0, 3, 4), (0, 3, 5)}
    assert largest(scores, 2, np.random.default_rng(0)).tolist() == [0, 3]
    rows = scores.view(2, 3)
    ranks = [row_ranks(rows, np.random.default_rng(seed)) for seed in range(20)]
    assert all(rank[0, 0] == rank[1, 0] == 0 for rank in ranks)
    assert {tuple(rank[0].tolist()) for rank in ranks} == {(0, 1, 2), (0, 2, 1)}
    assert len({tuple(rank.flatten().tolist()) for rank in ranks}) == 4  # each row for itself


@given(st.integers(1, 5), st.integers(1, 12), st.data())
def test_the_first_ranks_of_a_row_are_its_largest(rows, columns, data):
    values = data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    scores = torch.tensor(values, dtype=torch.float32).view(rows, columns)
    count = data.draw(st.integers(1, columns))
    chosen = (row_ranks(scores) < count).flatten().nonzero().flatten()
    assert chosen.tolist() == sorted(row_largest(scores, count).tolist())
    assert all(sorted(row) == list(range(columns)) for row in row_ranks(scores).tolist())


@pytest.mark.parametrize("draws", [False, True])
def test_what_a_sort_finds_on_a_device_is_what_the_cpu_finds(draws):
    source = torch.Generator().manual_seed(0)
    sizes, counts = (1, 40, 40, 300, 40, 40), (1, 17, 40, 120, 0, 1, 3, 1)
    parts = [torch.randint(-3, 4, (size,), generator=source).float() for size in sizes]
    for scores in parts:
        scores[::13] = torch.nan
    # No two are equal, or none of those that are is taken: nothing is drawn.
    parts += [torch.arange(9.0), torch.tensor([1.0, 2.0, 1.0])]
    here, there = (np.random.default_rng(7) if draws else None for _ in range(2))
    expected = [selection.largest(scores, count, here) for scores, count in zip(parts, counts, strict=True)]
    finite = [scores.nan_to_num(torch.inf, torch.inf, -torch.inf) for scores in parts]
    found = selection._largest_on_device(finite, counts, there)
    assert all(one.equal(other) for one, other in zip(found, expected, strict=True))
    assert not draws or here.random() == there.random()
