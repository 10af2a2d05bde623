from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import (
    allocate,
    even_mask,
    keep_largest,
    keep_largest_of_all,
    layer_counts,
    magnitude_mask,
    random_mask,
    share_out,
)


def test_erk_by_hand():
    # Raw densities 20/100 and 40/400, so counts are in the ratio 20 : 40; 30 = 10 + 20.
    assert allocate([(10, 10), (20, 20)], 30, "erk", [0, 0]) == [10, 20]


def test_erk_counts_the_kernel_and_er_does_not():
    shapes = [(8, 4, 3, 3), (16, 2, 1, 1)]
    # erk: 18 : 20; er: 12 * 9 : 18.
    assert allocate(shapes, 38, "erk", [0, 0]) == [18, 20]
    assert allocate(shapes, 126, "er", [0, 0]) == [108, 18]


def test_uniform_gives_one_density():
    assert allocate([(10, 10), (20, 20)], 50, "uniform", [0, 0]) == [10, 40]


def test_a_layer_that_would_pass_density_1_is_dense_and_the_rest_is_solved_again():
    # Shares 5 and 60; at 20 in all the first would get 1.5 of its 4 weights; at 300 all 4, and the second the rest.
    assert allocate([(1, 4), (30, 30)], 300, "erk", [0, 0]) == [4, 296]


def test_floors_hold():
    assert allocate([(4, 1, 3, 3), (100, 100)], 100, "uniform", [8, 0]) == [8, 92]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=8),
    st.sampled_from(["erk", "er", "uniform"]),
    st.floats(0, 1),
)
def test_counts_add_up_exactly_within_their_bounds(layers, allocation, density):
    shapes = [(o, i, k, k) for o, i, k in layers]
    sizes = [prod(shape) for shape in shapes]
    floors = [min(2, prod(shape[1:])) * shape[0] if shape[1] == 1 else 0 for shape in shapes]
    target = max(round(density * sum(sizes)), sum(floors))
    counts = allocate(shapes, target, allocation, floors)
    assert sum(counts) == target
    assert all(low <= count <= high for low, count, high in zip(floors, counts, sizes, strict=True))


def model():
    return nn.Sequential(nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 20, 1), nn.Flatten(), nn.Linear(20, 2))


def test_density_counts_all_parameters():
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    counts = layer_counts(space, 0.6, "erk")
    assert sum(counts) + space.n_dense == round(0.6 * space.n_parameters)


def test_unreachable_density_names_the_smallest_one():
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    # 68 that are never pruned, 12 of the depthwise filters and one of the other layer, of 242: 0.33471.
    with pytest.raises(UserError, match=r"choose at least 0\.3348"):
        layer_counts(space, 0.1, "erk")
    assert layer_counts(space, 0.3348, "erk") == [12, 1]


def test_no_layer_is_cut_at_the_smallest_density():
    small, large = nn.Linear(4, 2, bias=False), nn.Linear(2, 100, bias=False)
    space = ParameterSpace(nn.Sequential(small, large, nn.Linear(100, 2)), ["0.weight", "1.weight"])
    assert layer_counts(space, (space.n_dense + 10) / space.n_parameters, "uniform") == [1, 9]
    assert layer_counts(space, (space.n_dense + 2) / space.n_parameters, "uniform") == [1, 1]


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_a_model_without_layers_to_prune_is_told_so_and_not_to_choose_density_1(density):
    with pytest.raises(UserError, match=r"no layer whose weights can be pruned\nwhere: model.name\nmend: "):
        layer_counts(ParameterSpace(model(), []), density, "erk")


def test_a_single_layer_may_keep_a_single_weight():
    space = ParameterSpace(nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    assert layer_counts(space, (space.n_dense + 1) / space.n_parameters, "erk") == [1]


def test_filters_keep_their_floor_and_the_scores_stay_as_they_are():
    layer = ParameterSpace(model(), ["0.weight", "1.weight"]).layers[0]
    scores = torch.arange(54.0)
    kept = keep_largest(layer, scores, 14)
    assert kept.tolist() == sorted([7, 8, 16, 17, 25, 26, 34, 35, 43, 44, 51, 52, 53, 50])
    assert torch.equal(scores, torch.arange(54.0))


def test_random_mask_has_exact_counts_and_spares_depthwise_filters():
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    active = random_mask(space, [14, 50], np.random.default_rng(0))
    assert space.layer_counts(Mask(active)) == [14, 50]
    assert active[:54].view(6, 9).sum(1).min() >= 2
    other = random_mask(space, [14, 50], np.random.default_rng(1))
    assert not other.equal(active)


def test_shares_within_their_bounds_by_hand():
    # 1 : 1 : 2 of 12 would be 3, 3, 6; the last has room for 4, the first needs 5.
    assert share_out([1.0, 1.0, 2.0], 12, [5, 0, 0], [9, 9, 4]) == [5, 3, 4]


def test_fractions_go_to_the_largest_remainders_and_of_equal_ones_to_the_first():
    # 1.67, 3.33 and 5; then 1.5 and 3 in turn.
    assert share_out([1.0, 2.0, 3.0], 10, [0] * 3, [9] * 3) == [2, 3, 5]
    assert share_out([1.0, 2.0] * 20, 90, [0] * 40, [9] * 40) == [2, 3] * 10 + [1, 3] * 10


def test_shares_below_1_count_like_any_others():
    assert share_out([0.1, 0.4], 10, [0, 0], [9, 9]) == [2, 8]


def test_magnitude_mask_by_hand():
    space = ParameterSpace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1)), ["0.weight", "1.weight"])
    space.values[:6] = torch.tensor([0.1, -3.0, 2.0, 0.5, -0.2, 0.1])
    assert magnitude_mask(space, space.values, [2, 1]).nonzero().flatten().tolist() == [1, 2, 4]


def test_the_largest_of_all_layers_by_hand():
    space = ParameterSpace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(1, 1)), ["0.weight", "1.weight"])
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0, 0.5, 0.25])
    # The second layer's best comes first, though its score is smaller than any of the first layer.
    assert keep_largest_of_all(space, scores, 3).nonzero().flatten().tolist() == [0, 2, 4]
    assert scores[4] == 0.5


def test_filters_keep_their_floors_when_all_layers_compete():
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    scores = torch.rand(space.n_prunable, generator=torch.Generator().manual_seed(0))
    scores[:54] /= 1000  # the depthwise layer would lose everything
    active = keep_largest_of_all(space, scores, 40)
    assert active[:54].view(6, 9).sum(1).tolist() == [2] * 6
    assert active.sum() == 40
    # Not even one weight is left for the other layer: the floors come first.
    assert keep_largest_of_all(space, scores, 12)[:54].view(6, 9).sum(1).tolist() == [2] * 6


def filters_of(space, mask):
    return [mask.active[layer.start : layer.stop].view(layer.rows, -1).sum(1) for layer in space.layers]


@given(st.integers(12, 54), st.integers(1, 120), st.integers(0, 2**32 - 1))
def test_an_even_mask_spreads_exact_counts_over_filters_and_keeps_their_floors(depthwise, pointwise, seed):
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    mask = Mask(even_mask(space, [depthwise, pointwise], np.random.default_rng(seed)))
    assert space.layer_counts(mask) == [depthwise, pointwise]
    filters = filters_of(space, mask)
    assert all(int(rows.max() - rows.min()) <= 1 for rows in filters)
    assert filters[0].min() >= 2
    again = Mask(even_mask(space, [depthwise, pointwise], np.random.default_rng(seed)))
    assert torch.equal(mask.active, again.active)


def test_filters_with_one_weight_more_and_positions_are_drawn():
    space = ParameterSpace(model(), ["0.weight", "1.weight"])
    # 15 over six filters: three of them hold 3, the others 2.
    masks = [Mask(even_mask(space, [15, 20], np.random.default_rng(seed))) for seed in range(40)]
    depthwise = torch.stack([filters_of(space, mask)[0] for mask in masks])
    assert (depthwise == 3).sum(1).tolist() == [3] * 40
    # In 40 draws every filter is once among those, and once not; every position is once active.
    assert depthwise.max(0).values.tolist() == [3] * 6
    assert depthwise.min(0).values.tolist() == [2] * 6
    assert torch.stack([mask.active for mask in masks]).any(0).all()
