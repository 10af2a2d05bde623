import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.growth import channel_normalised


def test_a_linear_layer_by_hand():
    space = ParameterSpace(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    # Columns (3, 4), (0, 0) and (-1, 7): root mean squares sqrt(12.5), 0 and 5.
    gradient = torch.tensor([3.0, 0.0, -1.0, 4.0, 0.0, 7.0, 99.0])
    wanted = torch.tensor([3 / 12.5**0.5, 0.0, 0.2, 4 / 12.5**0.5, 0.0, 1.4])
    torch.testing.assert_close(channel_normalised(space, gradient), wanted)
    assert gradient.tolist() == [3, 0, -1, 4, 0, 7, 99]


def test_one_bright_channel_of_a_convolution_does_not_take_all():
    space = ParameterSpace(nn.Sequential(nn.Conv2d(2, 3, 2, bias=False)), ["0.weight"])
    weights = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    bright = weights * torch.tensor([1.0, 1000.0]).view(1, 2, 1, 1)
    scores = []
    for gradient in (weights, bright):
        space.layers[0].view(space.gradient).copy_(gradient)
        scores.append(channel_normalised(space, space.gradient))
    torch.testing.assert_close(*scores)
    assert scores[0].max() > 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_mean_square_over_all_readers_of_a_channel_is_1(groups, seed):
    space = ParameterSpace(nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups, bias=False)), ["0.weight"])
    gradient = torch.randn(space.n_prunable, generator=torch.Generator().manual_seed(seed))
    scores = space.layers[0].view(channel_normalised(space, gradient))
    for channel in range(4):
        group, inside = divmod(channel, 4 // groups)
        filters = slice(group * 8 // groups, (group + 1) * 8 // groups)
        readers = scores[filters, inside]
        assert readers.square().mean().item() == pytest.approx(1, rel=1e-5)
        # One factor for all of them, wherever in the kernel they are.
        factors = readers / space.layers[0].view(gradient)[filters, inside].abs()
        torch.testing.assert_close(factors, factors[:1, :1, :1].expand_as(factors))
