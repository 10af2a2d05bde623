"""One adjustment of twelve weights in two filters, worked out by hand, and what must hold for any adjustment.

Active weights:   position  0    2     3       6    9     11
                  value     0.5 -0.1   0.9     0.06 -0.7   0.05
The first filter is 0 to 5, the second 6 to 11. A share of 0.4 of the six is two. Over the layer the two weakest are 6
and 11, both of the second filter; but a filter of three may lose only one and keep two, so 2 and 11 go.
Gradients of inactive weights: 1: 0.85, 4: -0.9, 5: 0.2 in the first, 7: 0.8, 8: 0, 10: 0.1 in the second. The layer
would grow 4 and 1; each filter grows one: 4 and 7.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import even_mask, random_mask
from fedmef_dist.sparsity.filter_swaps import (
    _scattered,
    count_in_filters,
    filter_swap_counts,
    filters_can_swap,
    random_inactive_in_filters,
    strongest_inactive_in_filters,
    swappable_in_filters,
    weakest_swappable,
)
from fedmef_dist.sparsity.swaps import strongest_inactive, weakest

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.06, 9: -0.7, 11: 0.05}
GRADIENT = {0: 5.0, 1: 0.85, 4: -0.9, 5: 0.2, 7: 0.8, 10: 0.1, 11: -5.0}


def vector(entries):
    flat = torch.zeros(12)
    flat[list(entries)] = torch.tensor([float(value) for value in entries.values()])
    return flat


@pytest.fixture
def example():
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    space.set_mask(Mask(vector(WEIGHTS) != 0))
    return space


def test_one_adjustment_within_filters_by_hand(example):
    magnitude, scores = vector(WEIGHTS).abs(), vector(GRADIENT).abs()
    assert swappable_in_filters(example).tolist() == [1, 1]
    counts = filter_swap_counts(example, 0.4)
    assert counts == [2]
    assert weakest(example, magnitude, counts).tolist() == [6, 11]
    marked = weakest_swappable(example, magnitude, counts)
    assert marked.tolist() == [2, 11]
    per_filter = count_in_filters(example, marked)
    assert per_filter.tolist() == [1, 1]
    assert strongest_inactive(example, scores, counts).tolist() == [1, 4]
    grown = strongest_inactive_in_filters(example, scores, per_filter, len(marked))
    assert grown.tolist() == [4, 7]
    assert Mask(example.mask.swapped(marked, grown)).index.tolist() == [0, 3, 4, 6, 7, 9]


def test_one_filter_may_swap_all_where_only_its_weights_are_weak(example):
    # 6 of 12 active, but the second filter holds four: two of them may go.
    example.set_mask(Mask(vector({0: 1, 2: 1, 6: 1, 8: 1, 9: 1, 11: 1}) != 0))
    assert swappable_in_filters(example).tolist() == [0, 2]
    marked = weakest_swappable(example, vector({0: 0.1, 2: 0.2, 6: 0.3, 8: 0.9, 9: 0.8, 11: 0.7}), [2])
    assert marked.tolist() == [6, 11]
    assert count_in_filters(example, marked).tolist() == [0, 2]


def test_a_share_is_limited_by_what_filters_can_swap(example):
    assert filter_swap_counts(example, 0.1) == [0]
    assert filter_swap_counts(example, 1.0) == [2]
    # A full filter has nowhere to grow, one of five has one place, one of a single weight may lose none.
    example.set_mask(Mask(torch.tensor([True] * 6 + [True] * 5 + [False])))
    assert swappable_in_filters(example).tolist() == [0, 1]
    example.set_mask(Mask(vector({0: 1, 6: 1, 7: 1}) != 0))
    assert swappable_in_filters(example).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("count", "can"), [(0, False), (4, False), (5, True), (6, True), (10, True), (11, True), (12, False)]
)
def test_an_even_share_tells_whether_filters_can_swap(example, count, can):
    assert filters_can_swap(example, [count]) == can


def test_of_two_or_three_weights_in_filters_of_three_none_can_swap():
    space = ParameterSpace(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    assert not filters_can_swap(space, [5])


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(0, 2**32 - 1))
def test_filters_can_swap_where_an_even_mask_leaves_them_room(densities, seed):
    space = network()
    counts = [
        max(round(density * layer.size), layer.rows * layer.filter_floor)
        for density, layer in zip(densities, space.layers, strict=True)
    ]
    space.set_mask(Mask(even_mask(space, counts, np.random.default_rng(seed))))
    assert filters_can_swap(space, counts) == any(filter_swap_counts(space, 1.0))


def test_ties_go_to_the_lower_position(example):
    equal = torch.ones(12)
    assert weakest_swappable(example, equal, [1]).tolist() == [0]
    assert strongest_inactive_in_filters(example, equal, torch.tensor([2, 1]), 3).tolist() == [1, 4, 7]


def test_what_may_go_goes_even_where_it_is_infinite(example):
    assert weakest_swappable(example, torch.full((12,), torch.inf), [2]).tolist() == [0, 6]
    assert weakest_swappable(
        example, vector(WEIGHTS).abs() + torch.tensor([torch.inf] * 6 + [0] * 6), [2]
    ).tolist() == [0, 11]


def test_counts_that_a_filter_does_not_have_are_refused(example):
    with pytest.raises(ValueError, match="filter 0 has 3 inactive weights, fewer than 4"):
        strongest_inactive_in_filters(example, torch.ones(12), torch.tensor([4, 0]), 4)


def network():
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.Conv2d(5, 5, 3, groups=5, bias=False),
        nn.Flatten(),
        nn.Linear(20, 6, bias=False),
    )
    return ParameterSpace(model, ["0.weight", "1.weight", "3.weight"])


@given(st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 2**32 - 1), st.booleans())
def test_no_adjustment_changes_the_count_of_a_filter(density, share, seed, random_growth):
    space, generator = network(), np.random.default_rng(seed)
    counts = [max(round(density * layer.size), layer.rows * layer.filter_floor) for layer in space.layers]
    space.set_mask(Mask(random_mask(space, counts, generator)))
    before, able = count_in_filters(space, space.mask.index), swappable_in_filters(space)
    magnitude, scores = (
        torch.from_numpy(np.abs(generator.standard_normal((2, space.n_prunable)))).float().round(decimals=1)
    )
    swapped = filter_swap_counts(space, share)
    marked = weakest_swappable(space, magnitude, swapped)
    per_filter = count_in_filters(space, marked)
    if random_growth:
        grown = random_inactive_in_filters(space, per_filter, len(marked), generator)
    else:
        grown = strongest_inactive_in_filters(space, scores, per_filter, len(marked))
    assert space.mask.active[marked].all()
    assert not space.mask.active[grown].any()
    assert len(marked) == len(grown) == sum(swapped)
    assert (per_filter <= able).all()
    assert (before - per_filter)[per_filter > 0].ge(2).all()
    later = space.mask.next(space.mask.swapped(marked, grown))
    assert torch.equal(count_in_filters(space, later.index), before)


@given(st.integers(0, 2**32 - 1), st.data())
def test_the_marked_are_the_weakest_that_filters_can_spare(seed, data):
    space, generator = network(), np.random.default_rng(seed)
    space.set_mask(Mask(random_mask(space, [60, 20, 30], generator)))
    magnitude = torch.from_numpy(generator.integers(0, 6, space.n_prunable)).float()
    layer, share = space.layers[0], data.draw(st.floats(0, 1))
    count = filter_swap_counts(space, share)[0]
    left, wanted = swappable_in_filters(space).tolist(), []
    for position in sorted(space.mask.index.tolist(), key=lambda at: (magnitude[at].item(), at)):
        filter_ = position * layer.rows // layer.size
        if position < layer.stop and left[filter_] and len(wanted) < count:
            left[filter_] -= 1
            wanted.append(position)
    marked = weakest_swappable(space, magnitude, [count, 0, 0])
    assert marked.tolist() == sorted(wanted)


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_positions_come_without_asking_how_many_there_are(flags):
    chosen = torch.tensor(flags)
    assert torch.equal(_scattered(chosen, sum(flags)), chosen.nonzero().flatten())


def test_random_growth_within_filters_is_keyed_and_reaches_every_place():
    space = network()
    space.set_mask(Mask(random_mask(space, [60, 20, 30], np.random.default_rng(0))))
    counts = (~space.mask.active).new_zeros(16, dtype=torch.int64)
    counts[:5] = 3
    draws = [random_inactive_in_filters(space, counts, 15, np.random.default_rng(seed)) for seed in range(80)]
    assert all(torch.equal(count_in_filters(space, draw), counts) for draw in draws)
    assert torch.equal(draws[3], random_inactive_in_filters(space, counts, 15, np.random.default_rng(3)))
    reached = set(torch.cat(draws).tolist())
    assert reached == set((~space.mask.active[: space.layers[0].stop]).nonzero().flatten().tolist())
