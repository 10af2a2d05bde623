import copy

import pytest
import torch
from torch import nn

from fedmef_dist.layers import lean
from fedmef_dist.layers.activation_pruning import PrunedConv2d, PrunedLinear, Pruning, SapSettings
from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.layers.layernorm import LeanLayerNorm
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.random import Dropout, set_generator
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


def gradients(model, x, **autocast):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
        loss = model(x).float().square().mean()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def smooth_network():
    activations = [nn.SiLU(inplace=True), nn.Hardswish(), nn.GELU(), nn.LeakyReLU(0.1), nn.ReLU()]
    layers = [layer for activation in activations for layer in (nn.Conv2d(4, 4, 3, 1, 1), activation, nn.AvgPool2d(1))]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 9, 3))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("build", [network, smooth_network])
def test_with_ratio_0_all_gradients_are_those_of_the_stock_network_bit_for_bit(build, channels_last):
    torch.manual_seed(0)
    stock = build()
    stock = convert(stock, OFF, "batch")
    model = convert(copy.deepcopy(stock), SapSettings(enabled=True, prune_ratio=0.0), "batch")
    x = torch.randn(4, 3, 8, 8)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    for module in (stock, model):
        set_generator(module, torch.Generator().manual_seed(1))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(model, x), gradients(stock, x), strict=True))


@pytest.mark.parametrize("sap", [ON, SapSettings(enabled=True, scope="sample", selection="carried", storage="bf16")])
@pytest.mark.parametrize("norm", ["nsconv", "batch", "group", "none"])
def test_lean_networks_train_on_one_image_under_autocast_and_add_up_gradients(norm, sap):
    model = convert(network(), sap, norm)
    x = torch.randn(1, 3, 8, 8).to(memory_format=torch.channels_last)
    for autocast in ({}, {"on": True}):
        assert all(gradient.isfinite().all() for gradient in gradients(model, x, **autocast))
    model.eval()  # no dropout
    once = [gradient.clone() for gradient in gradients(model, x)]
    model(x).square().mean().backward()
    twice = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(twice, [2 * gradient for gradient in once])


def test_a_lean_network_keeps_nothing_without_gradients():
    model = convert(network(), ON, "nsconv")
    kept = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        model(torch.randn(2, 3, 8, 8))
    assert not kept


def test_max_pooling_that_a_byte_cannot_stand_for_stays_torchs():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(17), nn.MaxPool2d((16, 16)), nn.Flatten(), nn.Linear(2, 2))
    kinds_of = [type(module) for module in convert(model, ON, "batch").modules()]
    assert (kinds_of.count(nn.MaxPool2d), kinds_of.count(lean.LeanMaxPool2d)) == (1, 1)
    indices = nn.Sequential(nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, return_indices=True), nn.Linear(2, 2))
    _, places = convert(indices, ON, "batch")[:2](torch.zeros(1, 1, 4, 4))
    assert places.dtype == torch.int64


@pytest.mark.parametrize("options", [{"bias": False}, {"elementwise_affine": False}])
def test_layer_normalisation_without_bias_or_weight_is_lean_too(options):
    model = convert(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, **options), nn.Linear(4, 2)), ON, "batch")
    assert type(model[1]) is LeanLayerNorm
    model(torch.randn(2, 3)).sum().backward()


@pytest.mark.parametrize("sap", [OFF, ON])
def test_torchs_encoder_calls_the_linear_layers_of_its_attention(sap):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    stock = nn.Sequential(nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)).eval()
    x, model = torch.randn(2, 5, 3), convert(copy.deepcopy(stock), sap, "batch")
    with torch.no_grad():
        torch.testing.assert_close(model(x), stock(x))
    model.train()(x).sum().backward()
    assert model[1].layers[0].self_attn.in_proj.weight.grad is not None


@pytest.mark.parametrize("norm", ["batch", "nsconv", "none"])
def test_batch_normalisation_of_features_survives_a_batch_of_one(norm):
    stock = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.5, momentum=None), nn.Linear(4, 2))
    stock[1].running_mean.fill_(2)
    model = convert(stock, OFF, norm)
    assert (model[1].eps, model[1].momentum, model[1].running_mean.tolist()) == (0.5, None, [2] * 4)
    model.train()(torch.randn(1, 3)).sum().backward()


@pytest.mark.parametrize("kind", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
def test_dropout_of_channels_draws_from_the_clients_generator(kind):
    model = convert(nn.Sequential(nn.Conv2d(1, 64, 1), kind(0.5), nn.Flatten(), nn.Linear(64, 2)), OFF, "batch").train()
    outputs = []
    for seed in (1, 2, 1):
        set_generator(model, torch.Generator().manual_seed(seed))
        outputs.append(model(torch.ones(3, 1, 1, 1)))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


@pytest.mark.parametrize("stock", [nn.BatchNorm2d(8), nn.GroupNorm(8, 8, eps=0.5)])
def test_group_normalisation_survives_a_batch_of_one_pixel(stock):
    model = convert(nn.Sequential(nn.Conv2d(1, 8, 1), stock, nn.Flatten(), nn.Linear(8, 2)), OFF, "group")
    assert model[1].eps == stock.eps
    model.train()(torch.randn(1, 1, 1, 1)).sum().backward()
