"""Weights that act as powers: gradients against autograd's own, and what pruning as much as the weights keeps."""

import pytest
import torch
from torch.nn import functional as F

from fedmef_dist.layers.activation_pruning import PrunedConv2d, PrunedLinear, Pruning
from fedmef_dist.layers.filters import normalise
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.powered import powered, root, slope


def test_a_power_by_hand():
    theta = torch.tensor([4.0, -4.0, 0.25, 0.0])
    assert powered(theta, 1.5).tolist() == [8.0, -8.0, 0.125, 0.0]
    assert slope(theta, 1.5).tolist() == [3.0, 3.0, 0.75, 0.0]
    torch.testing.assert_close(root(powered(theta, 1.5), 1.5), theta)


def plain(theta, alpha):
    return theta.sign() * theta.abs() ** alpha


@pytest.mark.parametrize("pruning", [Pruning(), Pruning(packs=True)])
@pytest.mark.parametrize("kind", ["convolution", "linear", "normalised"])
def test_gradients_are_those_of_autograd(kind, pruning):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6) if kind != "linear" else torch.randn(3, 4)
    layer = {
        "convolution": lambda: PrunedConv2d(4, 5, 3, pruning=pruning),
        "linear": lambda: PrunedLinear(4, 5, pruning=pruning),
        "normalised": lambda: NSConv2d(4, 5, 3, pruning=pruning),
    }[kind]()
    layer.alpha = 1.25
    with torch.no_grad():
        layer.weight[0].zero_()
    x.requires_grad_()
    found = layer(x)
    found.square().sum().backward()
    mine = x.grad, layer.weight.grad, layer.bias.grad
    x.grad = None
    theta = layer.weight.detach().clone().requires_grad_()
    bias = layer.bias.detach().clone().requires_grad_()
    acting = plain(theta, 1.25)
    if kind == "normalised":
        acting = normalise(acting, layer.gain, None, layer.normaliser)
    expected = F.linear(x, acting, bias) if kind == "linear" else F.conv2d(x, acting, bias)
    expected.square().sum().backward()
    torch.testing.assert_close(found, expected)

    for one, other in zip(mine, (x.grad, theta.grad, bias.grad), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not mine[1][0].any()  # what is 0 has no gradient
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


def test_pruning_follows_the_mask():
    layer = PrunedConv2d(4, 8, 3, pruning=Pruning(follows_weights=True))
    assert layer.pruning.is_dense
    mask = torch.zeros(8, 4, 3, 3, dtype=torch.bool)
    mask[:2] = True
    layer.bind_mask(mask)
    assert layer.pruning.ratio == 0.75
    kept = []
    x = torch.randn(2, 4, 5, 5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert x.numel() // 4 in kept  # the values; beside them a bit an element, and the weight
    layer.bind_mask(None)
    assert layer.pruning.is_dense
    fixed = PrunedConv2d(4, 8, 3, pruning=Pruning(0.5))
    fixed.bind_mask(mask)
    assert fixed.pruning.ratio == 0.5


def test_a_power_keeps_no_copy_of_the_weight():
    layer = PrunedConv2d(4, 8, 3, bias=False)
    layer.alpha = 1.25
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        layer(torch.randn(2, 4, 5, 5).requires_grad_())
    assert layer.weight.data_ptr() in kept
    assert len(kept) == 2
