"""Clients choose among masks: statistics, losses and costs worked out by hand.

One image channel, a 1x1 convolution with two filters (weights 1 and 2), batch normalisation, an output layer. The
clients' pixels are -1, 1 (two samples) and 0, 0, 4, 4 (four). So the mean of filter 0 is 0 and 2, weighted 4/3, that of
filter 1 twice as much; torch's unbiased variances of filter 0 are 2 and 16/3, weighted 38/9.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_methods import preparation_for
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.methods.candidate_selection import CandidateSelection, candidate_counts
from fedmef_dist.sparsity import Mask, ParameterSpace


def pixels(*values):
    return torch.tensor(values).view(-1, 1, 1, 1)


CLIENTS = [
    (pixels(-1.0, 1.0), torch.tensor([0, 1])),
    (pixels(0.0, 0.0, 4.0, 4.0), torch.tensor([0, 0, 1, 1])),
]
MASKS = [torch.tensor(active) for active in ([True, False], [False, True], [True, True])]


def example(normalised=True):
    norm = BatchNorm2d(2) if normalised else nn.Identity()
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), norm, nn.Flatten(), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight"])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        # Only filter 1 is listened to, and it tells the labels apart: the second mask and the third are better.
        model[3].weight.copy_(torch.tensor([[0.0, -1.0], [0.0, 1.0]]))
        model[3].bias.zero_()
    return model, space


def test_statistics_are_the_clients_weighted_mean():
    model, space = example()
    selection = CandidateSelection(space, MASKS, preparation_for(model, space, CLIENTS))
    found = selection.preparation.average(selection.statistics, selection._measure_all).view(3, 4)
    # Means of both filters, then their variances; a filter without a weight has 0 and 0.
    first, second = [4 / 3, 38 / 9], [8 / 3, 4 * 38 / 9]
    expected = [[first[0], 0, first[1], 0], [0, second[0], 0, second[1]], [first[0], second[0], first[1], second[1]]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert model[1].momentum == 0.1


def test_the_lowest_weighted_loss_wins_and_its_statistics_stay():
    model, space = example()
    preparation = preparation_for(model, space, CLIENTS)
    start = preparation.values.clone()
    assert CandidateSelection(space, MASKS, preparation).choose().equal(MASKS[1])  # the first of two that are equal
    torch.testing.assert_close(preparation.values[-4:], torch.tensor([0.0, 8 / 3, 0.0, 4 * 38 / 9]))
    assert preparation.values[:-4].equal(start[:-4])
    assert space.mask.is_full


def test_losses_by_hand_without_normalisation():
    model, space = example(normalised=False)
    preparation = preparation_for(model, space, CLIENTS)
    selection = CandidateSelection(space, MASKS[:2], preparation)
    losses = selection._losses(0, [space.values[space.n_parameters :]] * 2)
    # Logits (-y, y) with y = -2, 2: the right one is ahead by 4.
    torch.testing.assert_close(losses, torch.tensor([np.log(2), np.log1p(np.exp(-4))]).float())
    assert selection.choose().equal(MASKS[1])


@pytest.mark.parametrize(("normalised", "statistics", "passes"), [(True, 3 * 4 * 4, 2), (False, 0, 1)])
@pytest.mark.parametrize("rehearses", [False, True])
def test_costs_by_hand(normalised, statistics, passes, rehearses):
    model, space = example(normalised)
    preparation = preparation_for(model, space, CLIENTS, rehearses=rehearses)
    chosen = CandidateSelection(space, MASKS, preparation).choose()
    assert chosen.equal(MASKS[0]) == rehearses
    # Down for each of two clients: all values; masks of a tag and a byte of bits each.
    assert preparation.costs.down == 2 * (4 * space.total + 2 + 2 + 2 + statistics)
    assert preparation.costs.up == 2 * (statistics + 3 * 4)
    assert preparation.costs.forwards == [(space.layer_counts(Mask(mask)), 6 * passes) for mask in MASKS]
    assert preparation.costs.gradient_samples == 0


def test_a_candidate_whose_loss_is_not_finite_loses():
    model, space = example(normalised=False)
    space.values[1] = 3e38
    preparation = preparation_for(model, space, CLIENTS)
    assert CandidateSelection(space, MASKS[1:] + MASKS[:1], preparation).choose().equal(MASKS[0])


def test_statistics_that_are_not_finite_are_refused():
    model, space = example()
    space.values[1] = torch.nan
    with pytest.raises(UserError, match="that are finite"):
        CandidateSelection(space, MASKS, preparation_for(model, space, CLIENTS)).choose()


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([1, 1, 3, 8]), st.floats(0, 1)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_candidates_share_out_the_same_total_within_their_bounds(layers, seed):
    convolutions = [nn.Conv2d(inputs, outputs, 3) for outputs, inputs, _ in layers]
    space = ParameterSpace(nn.Sequential(*convolutions), [f"{place}.weight" for place in range(len(layers))])
    floors = [layer.rows * layer.filter_floor for layer in space.layers]
    counts = [
        floor + round(share * (layer.size - floor))
        for layer, floor, (_, _, share) in zip(space.layers, floors, layers, strict=True)
    ]
    found = candidate_counts(space, counts, 5, np.random.default_rng(seed))
    assert found[0] == counts
    assert len(found) == 5
    for candidate in found:
        assert sum(candidate) == sum(counts)
        for layer, floor, count, before in zip(space.layers, floors, candidate, counts, strict=True):
            assert max(floor, min(before, 1)) <= count <= layer.size


def test_candidates_differ():
    space = ParameterSpace(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)), ["0.weight", "1.weight"])
    found = candidate_counts(space, [30, 30], 8, np.random.default_rng(0))
    assert len({tuple(candidate) for candidate in found}) > 5
    # Two factors within a factor 4 of each other: never further apart than 48 : 12.
    assert all(12 <= count <= 48 for candidate in found for count in candidate)
