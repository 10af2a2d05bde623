import pytest
import torch
from torch import nn

from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.health import MaskHealth, grown_survived, growth_concentration, thin_filters


def space_of_two_layers():
    """Three filters of four weights, then two of three."""
    return ParameterSpace(
        nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)), ["0.weight", "1.weight"]
    )


def mask_of(*positions):
    return Mask(torch.isin(torch.arange(18), torch.tensor(positions)))


def test_the_share_of_grown_weights_that_stay():
    grown = mask_of(1, 5, 9, 13)
    assert grown_survived(grown, mask_of(1, 2, 9, 13)) == 0.75
    assert grown_survived(grown, mask_of()) == 0
    assert grown_survived(mask_of(), mask_of(1)) is None


def test_the_share_of_growth_in_one_filter_weighted_by_layers():
    space = space_of_two_layers()
    # Of six in the first layer three in one filter; of two in the second both in one: (3 + 2) / 8.
    grown = mask_of(0, 1, 2, 4, 5, 8, 12, 13)
    assert growth_concentration(space, grown) == 5 / 8
    assert growth_concentration(space, mask_of(0, 4, 8)) == 1 / 3
    assert growth_concentration(space, mask_of()) is None


def test_filters_with_fewer_than_two_active_weights():
    space = space_of_two_layers()
    # 2, 1 and 0 in the first layer, 3 and 1 in the second.
    assert thin_filters(space, mask_of(0, 3, 4, 12, 13, 14, 17)) == 3
    assert thin_filters(space, Mask(torch.ones(18, dtype=torch.bool))) == 0


def test_a_filter_of_two_weights_is_thin_with_one_of_them():
    space = ParameterSpace(nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2)), ["0.weight"])
    assert thin_filters(space, Mask(torch.tensor([True, False, True, True, False, False]))) == 2


def test_a_filter_of_one_weight_is_not_thin():
    space = ParameterSpace(nn.Sequential(nn.Conv2d(3, 3, 1, groups=3), nn.Conv2d(3, 2, 1)), ["0.weight", "1.weight"])
    assert thin_filters(space, Mask(torch.tensor([True] * 3 + [True, True, False, True, False, False]))) == 1


def test_metrics_of_adjustments_before_and_after_a_resume():
    space = space_of_two_layers()
    masks = [mask_of(0, 1, 4, 5, 12), mask_of(0, 2, 3, 5, 13), mask_of(2, 5, 6, 9, 13), mask_of(2, 5, 6, 9, 13)]
    health = MaskHealth(space)
    # 2 and 3 grow in one filter, 13 in the other layer. Filters hold 3, 1, 0, 1 and 0.
    first = health.adjusted(masks[0], masks[1])
    assert first == {"sparsity/growth_concentration": 1.0, "sparsity/thin_filters": 4.0}
    # Of 2, 3 and 13 two stay; 6 and 9 grow in two filters. Filters hold 1, 2, 1, 1 and 0.
    resumed = MaskHealth(space)
    resumed.restore(health.state())
    wanted = {"sparsity/grown_survived": 2 / 3, "sparsity/growth_concentration": 0.5, "sparsity/thin_filters": 4.0}
    assert health.adjusted(masks[1], masks[2]) == wanted == resumed.adjusted(masks[1], masks[2])
    # Nothing grows: its share in one filter is not defined, nor is what survives of it.
    assert health.adjusted(masks[2], masks[3]) == {"sparsity/grown_survived": 1.0, "sparsity/thin_filters": 4.0}
    assert health.adjusted(masks[2], masks[3]) == {"sparsity/thin_filters": 4.0}


def test_a_state_of_another_space_is_refused():
    health = MaskHealth(space_of_two_layers())
    for wrong in (torch.zeros(2, dtype=torch.uint8), torch.zeros(3)):
        with pytest.raises(ValueError, match="no bits of 18 weights"):
            health.restore({"grown": wrong})
