import pytest
import torch
from torch import nn

from fedmef_dist.layers.activation_pruning import LOSSLESS, PrunedLinear, Pruning
from fedmef_dist.layers.dropped import Dropped, measure_dropped


def test_by_hand():
    layers = PrunedLinear(4, 1, pruning=Pruning(0.5)), PrunedLinear(4, 1, pruning=LOSSLESS), nn.Linear(4, 1)
    first, second = torch.tensor([[3.0, -4.0, 2.0, 1.0]]), torch.tensor([[0.0, 5.0, 0.0, 1.0]])

    def forward():
        layers[0](first)
        layers[1](second)
        layers[2](first)

    # Of 30 and 26 the first layer drops 4 + 1; of 4 and 2 entries that are not 0 it drops 2.
    assert measure_dropped(forward) == Dropped(pytest.approx(5 / 56), pytest.approx(2 / 6))


def test_without_pruning_nothing_is_dropped():
    layer = PrunedLinear(4, 1, pruning=LOSSLESS)
    assert measure_dropped(lambda: layer(torch.randn(2, 4).relu())) == (0, 0)
    assert measure_dropped(lambda: nn.Linear(4, 1)(torch.randn(2, 4))) == (0, 0)
    assert measure_dropped(lambda: PrunedLinear(4, 1, pruning=Pruning(0.5))(torch.zeros(2, 4))) == (0, 0)


def test_zeros_are_not_missed():
    layer = PrunedLinear(8, 1, pruning=Pruning(0.5))
    assert measure_dropped(lambda: layer(torch.tensor([[1.0, 2, 3, 4, 0, 0, 0, 0]]))) == (0, 0)
