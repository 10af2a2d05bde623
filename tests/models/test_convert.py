import pytest
import torch
from torch import nn

from fedmef_dist.layers import lean
from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.layers.nsconv import GAMMA_RELU, NSConv2d
from fedmef_dist.layers.pruning import PrunedConv2d, PrunedLinear, Pruning, SapSettings
from fedmef_dist.layers.random import Dropout
from fedmef_dist.models.convert import convert, prunable_weights

OFF = SapSettings(enabled=False)
ON = SapSettings(enabled=True, prune_ratio=0.5)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, groups=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.Dropout(0.3),
        nn.Linear(6, 2),
    )


def kinds(model):
    return [type(module) for module in model]


def test_a_dense_baseline_is_made_of_stock_layers():
    model = convert(network(), OFF, "batch")
    assert kinds(model) == [
        nn.Conv2d,
        BatchNorm2d,
        nn.ReLU,
        nn.Conv2d,
        BatchNorm2d,
        nn.ReLU6,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
        Dropout,
        nn.Linear,
    ]


def test_fedmefs_form():
    model = convert(network(), ON, "nsconv")
    assert kinds(model) == [
        NSConv2d,
        nn.Identity,
        lean.LeanReLU,
        NSConv2d,
        nn.Identity,
        lean.LeanReLU6,
        lean.LeanMaxPool2d,
        lean.LeanAdaptiveAvgPool2d,
        nn.Flatten,
        PrunedLinear,
        Dropout,
        nn.Linear,
    ]
    assert model[0].pruning == Pruning(0.0)
    assert model[3].pruning == model[9].pruning == Pruning(0.5)
    assert model[3].normaliser.gamma == GAMMA_RELU
    assert model[3].groups == 2


def test_first_and_output_layer_are_pruned_on_request():
    sap = SapSettings(enabled=True, prune_ratio=0.3, scope="sample", first_layer=True, output_layer=True)
    model = convert(network(), sap, "batch")
    assert [model[at].pruning for at in (0, 3, 9, 11)] == [Pruning(0.3, per_sample=True)] * 4
    assert kinds(model)[0] is PrunedConv2d


def test_group_and_none():
    grouped = convert(network(), OFF, "group")
    assert (grouped[1].num_groups, grouped[1].num_channels) == (8, 8)
    bare = convert(network(), OFF, "none")
    assert kinds(bare)[1] is nn.Identity
    assert not bare[0].bias.any()
    assert convert(network(), OFF, "batch")[0].bias is None


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("sap", [OFF, ON, SapSettings(enabled=True, prune_ratio=0.0)])
def test_the_function_stays_the_same(norm, sap):
    model = network().eval()
    if norm == "none":
        model[1] = model[4] = nn.Identity()
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    torch.testing.assert_close(convert(model, sap, norm)(x), expected)


def test_centre():
    assert convert(network(), OFF, "nsconv")[0].centre
    assert not convert(network(), OFF, "nsconv", centre=False)[0].centre


def test_all_but_biases_normalisation_and_the_output_layer_is_prunable():
    for norm in ("batch", "nsconv"):
        assert prunable_weights(convert(network(), ON, norm)) == ["0.weight", "3.weight", "9.weight"]


def test_evaluation_mode_survives():
    assert not any(module.training for module in convert(network().eval(), ON, "nsconv").modules())
