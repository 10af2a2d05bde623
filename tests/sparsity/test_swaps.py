import numpy as np
import torch
from torch import nn

from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import random_inactive, spare_counts, strongest_inactive, swap_counts, weakest


def two_filters(*active):
    """Two filters of 3x3 that see one channel each, and so keep two weights each."""
    space = ParameterSpace(nn.Sequential(nn.Conv2d(2, 2, 3, groups=2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    space.set_mask(Mask(torch.isin(torch.arange(18), torch.tensor(active))))
    return space


def test_what_a_layer_can_spare_and_swap():
    space = two_filters()
    # Of 10 active weights 4 must stay, and 8 places are free; of 16 only 2 are; of 4 none can go.
    for active, share, spare, swapped in [(10, 0.5, 5, 5), (10, 0.9, 6, 6), (16, 0.5, 8, 2), (4, 0.5, 0, 0)]:
        assert spare_counts(space.layers, [active], share) == [spare]
        assert swap_counts(space.layers, [active], share) == [swapped]


def test_an_active_weight_of_0_counts_for_its_filters_floor():
    space = two_filters(7, 8, 9, 10, 11, 12)
    magnitude = torch.zeros(18)
    magnitude[9:13] = torch.tensor([0.4, 0.2, 0.3, 0.1])
    # The first filter has just the two that it must keep, although no weight of the layer is smaller.
    assert weakest(space, magnitude, [2]).tolist() == [10, 12]


def test_the_strongest_inactive_and_random_ones_of_a_layer():
    space = two_filters(0, 1, 9, 10)
    scores = torch.zeros(18)
    scores[[0, 5, 12]] = torch.tensor([9.0, 0.1, 0.2])
    # An active weight never wins; of the zeros the first inactive one does.
    assert strongest_inactive(space, scores, [3]).tolist() == [2, 5, 12]
    # Or any of them, by a key; never instead of one that is not 0.
    grown = [strongest_inactive(space, scores, [3], GrowthOrder(0, round).of()).tolist() for round in range(60)]
    assert all({5, 12} < set(positions) for positions in grown)
    assert len({tuple(positions) for positions in grown}) == 18 - 4 - 2
    assert grown[7] == strongest_inactive(space, scores, [3], GrowthOrder(0, 7).of()).tolist()
    assert len({tuple(strongest_inactive(space, scores, [3], GrowthOrder().of(one)).tolist()) for one in range(9)}) > 1
    draws = [random_inactive(space, [6], np.random.default_rng(seed)) for seed in range(40)]
    assert all(len(draw) == 6 and not space.mask.active[draw].any() for draw in draws)
    # Every inactive position is drawn once in forty times, and one seed always draws the same.
    assert set(torch.cat(draws).tolist()) == set((~space.mask.active).nonzero().flatten().tolist())
    assert torch.equal(draws[7], random_inactive(space, [6], np.random.default_rng(7)))
