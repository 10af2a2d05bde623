from math import pi, sqrt

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.models.gammas import gamma_of, gammas_of

OFF = SapSettings(enabled=False)
SILU = gamma_of(F.silu)
IMAGES = torch.zeros(2, 3, 8, 8)


def conv(channels=4):
    return nn.Conv2d(channels, 4, 1)


def normalised(name, size, **settings):
    model = build_model(
        ModelSettings(name=name, **settings), OFF, norm="nsconv", classes=5, shape=(3, size, size), seed=0
    )
    return {name: module for name, module in model.named_modules() if isinstance(module, NSConv2d)}, model


@pytest.mark.parametrize("function", [F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.hardswish, F.gelu, torch.tanh])
def test_gamma_gives_the_activation_unit_variance(function):
    z = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    assert (function(z) * gamma_of(function)).std() == pytest.approx(1, abs=5e-3)


def test_that_of_relu_is_exact():
    assert gamma_of(F.relu) == GAMMA_RELU == sqrt(2 / (1 - 1 / pi))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(), nn.ELU(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.Tanh()],
    ids=lambda module: type(module).__name__,
)
def test_a_layer_has_the_gamma_of_the_activation_that_it_reads(activation):
    between = nn.Sequential(activation, nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.Dropout())
    model = nn.Sequential(conv(3), between, conv(), conv(), nn.Flatten(), nn.Linear(64, 5))
    function = {nn.ReLU: F.relu, nn.ReLU6: F.relu6, nn.Tanh: torch.tanh, nn.LeakyReLU: F.leaky_relu, nn.ELU: F.elu}
    expected = gamma_of(function.get(type(activation), activation))
    assert gammas_of(model, IMAGES) == {"0": expected, "2": expected, "3": 1, "5": 1}


class Paths(nn.Module):
    """Sums, gates, concatenations and functions in the place of modules."""

    def __init__(self):
        super().__init__()
        self.first, self.straight, self.gate, self.gated, self.of_sum = conv(3), conv(), conv(), conv(), conv()
        self.of_both, self.normed, self.idle = nn.Conv2d(8, 4, 1), conv(), conv()
        self.norm, self.output = nn.GroupNorm(2, 4), nn.Linear(4, 5)

    def forward(self, x):
        x = F.silu(self.first(x))
        straight = self.straight(x)
        gate = torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = self.gated(input=torch.relu(straight) * gate)
        x = x + self.of_sum(straight + torch.relu(x))
        x = self.of_both(torch.cat((F.silu(x), F.relu(x)), 1))
        return self.output(self.normed(self.norm(F.relu(x))).mean((2, 3)))


def test_of_several_paths_the_least_counts_and_gates_do_not():
    assert gammas_of(Paths(), IMAGES) == {
        "first": SILU,
        "straight": SILU,
        "gate": SILU,
        "gated": GAMMA_RELU,
        "of_sum": 1,
        "of_both": GAMMA_RELU,
        "normed": 1,
        "output": 1,
    }


def test_without_any_activation_the_first_layer_has_that_of_relu():
    assert gammas_of(nn.Sequential(conv(3), nn.Flatten(), nn.Linear(256, 5)), IMAGES) == {"0": GAMMA_RELU, "2": 1}


def test_the_model_stays_as_it_is():
    model = nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), conv())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    with torch.no_grad():
        gammas_of(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert not model[0]._forward_pre_hooks
    assert model[0].weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_in_networks_where_every_layer_reads_an_activation_it_is_the_published_one():
    layers, _ = normalised("resnet18", 16, stem="cifar")
    assert {layer.normaliser.gamma for layer in layers.values()} == {GAMMA_RELU}


def test_linear_bottlenecks_are_read_with_1():
    layers, _ = normalised("mobilenet_v2", 16, stem="cifar", width=0.25)
    expanding = [name for name in layers if name.endswith("conv.0.0") and name != "features.1.conv.0.0"]
    ones = [name for name, layer in layers.items() if layer.normaliser.gamma == 1]
    assert ones == [*expanding, "features.18.0"]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0"])
def test_what_layers_give_does_not_grow_from_block_to_block(name):
    layers, model = normalised(name, 32, stem="cifar")
    largest = []
    for layer in layers.values():
        layer.register_forward_hook(lambda _layer, _inputs, outputs: largest.append(outputs.std().item()))
    with torch.no_grad():
        model.eval()(torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert max(largest) < 2.5
