"""Filter 0 of the example holds -1, 1, 3: mean 1, deviations -2, 0, 2, s = sqrt(8); filter 1 a single weight of 5."""

from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.layers.acting import acting_magnitude
from fedmef_dist.layers.filters import GAMMA_RELU, Normaliser, normalise
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import random_mask


def example(normaliser):
    model = nn.Sequential(NSLinear(4, 2, normaliser=normaliser), nn.Linear(2, 2), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    model[0].gain.data.copy_(torch.tensor([-0.5, 2.0]))
    space.values[:12] = torch.tensor([-1.0, 0, 1, 3, 0, 5, 0, 0, 0.5, -0.25, 0, 4])
    space.set_mask(Mask(torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1], dtype=torch.bool)))
    return space


def test_by_hand():
    space = example(Normaliser())
    extreme = GAMMA_RELU * 0.5 * 2 / sqrt(8)
    # A filter with a single weight has no variance: g theta = 10. The plain layer's magnitudes are as they are.
    wanted = torch.tensor([extreme, 0, 0, extreme, 0, 10, 0, 0, 0.5, 0.25, 0, 4])
    torch.testing.assert_close(acting_magnitude(space, space.values), wanted)


def test_a_layer_that_does_not_centre_by_hand():
    space = example(Normaliser(gamma=3.0, centre=False))
    # Squares 1 + 1 + 9 = 11.
    wanted = [3 * 0.5 * value / sqrt(11) for value in (1, 0, 1, 3)]
    assert acting_magnitude(space, space.values)[:4].tolist() == pytest.approx(wanted)


def test_a_convolution_multiplies_with_just_these_magnitudes():
    torch.manual_seed(0)
    model = nn.Sequential(NSConv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6, 2))
    space = ParameterSpace(model, ["0.weight"])
    space.set_mask(Mask(random_mask(space, [40], np.random.default_rng(0))))
    layer = model[0]
    layer.gain.data.uniform_(0.5, 2)
    weight = normalise(layer.weight, layer.gain, layer.mask, layer.normaliser)
    torch.testing.assert_close(space.layers[0].view(acting_magnitude(space, space.values)), weight.abs())
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.bias, groups=2))
