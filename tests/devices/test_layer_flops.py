import pytest
import torch
from step_flops import step_counter
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fedmef_dist.devices.device_memory import model_activations
from fedmef_dist.devices.layer_flops import LayerFlops, layer_flops
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models import ModelSettings, build_model, stock_model
from fedmef_dist.models.convert import convert
from fedmef_dist.models.gpt import GPTSettings

TOKENS = 6


def test_three_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 5)
    )
    # 16 positions with 2 * 9 weights; 4 positions with 4 * 9 weights; 16 * 5 weights. A multiply-add is two.
    assert layer_flops(model, torch.zeros(1, 1, 4, 4)) == {
        "0": LayerFlops(576, 0, 576, input_elements=16),
        "2": LayerFlops(288, 288, 288, input_elements=32),
        "4": LayerFlops(160, 160, 160, input_elements=16),
    }


def test_the_first_layer_behind_a_view_wants_no_gradient_of_its_input():
    found = layer_flops(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.zeros(1, 2, 2))
    assert found == {"1": LayerFlops(24, 0, 24, input_elements=4)}


def test_a_layer_counts_each_time_it_runs():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer)
    assert layer_flops(model, torch.zeros(1, 3)) == {"0": LayerFlops(36, 18, 36, input_elements=6)}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (3, 32, 32)),
        ("resnet8", (3, 32, 32)),
        ("resnet18", (3, 224, 224)),
        ("mobilenet_v2", (3, 32, 32)),
        ("vit_b_16", (3, 32, 32)),
        ("gpt", (TOKENS,)),
    ],
)
def test_a_dense_step_takes_what_torch_counts_for_the_stock_network(name, shape):
    settings = ModelSettings(name=name)
    with torch.device("meta"):
        x = torch.zeros(1, *shape, dtype=torch.int64 if name == "gpt" else torch.float32)
        plain = stock_model(settings, classes=10, shape=shape, seed=0)
        model = build_model(settings, SapSettings(enabled=False), norm="batch", classes=10, shape=shape, seed=0)
    with step_counter() as forward:
        output = plain(x)
    with step_counter() as backward:
        output.backward(torch.empty_like(output))
    found = layer_flops(model, x).values()
    assert sum(flops.forward for flops in found) == forward.get_total_flops() > 0
    assert sum(flops.backward for flops in found) == backward.get_total_flops() > 0


@pytest.mark.parametrize(("name", "shape"), [("resnet8", (3, 8, 8)), ("gpt", (TOKENS,))])
def test_normalised_weights_and_pruned_inputs_change_no_layers_products(name, shape):
    settings = ModelSettings(name=name)
    x = torch.zeros(1, *shape, dtype=torch.int64 if name == "gpt" else torch.float32)

    def products(enabled, norm):
        model = build_model(settings, SapSettings(enabled=enabled), norm=norm, classes=10, shape=shape, seed=0)
        return {name: (flops.forward, flops.backward) for name, flops in layer_flops(model, x).items()}

    assert products(True, "nsconv") == products(False, settings.stock_norm)


def test_torch_counts_a_grouped_convolutions_weight_as_a_full_one():
    # Why the count is corrected: the gradient of 4 * 9 weights at 4 positions takes 288 FLOPs, not 4 times as many.
    layer = nn.Conv2d(4, 4, 3, groups=4)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 4, 4, 4)).sum().backward()
    assert counter.get_total_flops() == 288 + 4 * 288
    assert layer_flops(layer, torch.zeros(1, 4, 4, 4))[""].weight_gradient == 288


def test_lean_attention_computes_projection_and_heads_again():
    settings = ModelSettings(name="gpt", gpt=GPTSettings(depth=1, width=8, heads=2))
    model = build_model(
        settings, SapSettings(enabled=True, prune_ratio=0.0), norm="layer", classes=10, shape=(TOKENS,), seed=0
    )
    tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
    found = layer_flops(model, tokens)
    again = {name: flops.recomputation for name, flops in found.items() if flops.recomputation}
    product = 2 * TOKENS * TOKENS * 8
    assert again == {"blocks.0.attention": 2 * product, "blocks.0.attention.in_proj": 2 * TOKENS * 8 * 24}
    with step_counter() as counter:
        F.cross_entropy(model(tokens)[0], tokens[0]).backward()
    step = sum(flops.forward + flops.backward + flops.recomputation for flops in found.values())
    assert counter.get_total_flops() == step


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer_flops(model.train(), torch.ones(1, 1, 4, 4))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class Named(nn.Module):
    """Calls its layers with named arguments, where the caller wants it."""

    def __init__(self, by_name):
        super().__init__()
        self.by_name, self.layer, self.output = by_name, nn.Linear(8, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        x = self.layer(input=x) if self.by_name else self.layer(x)
        tokens = {"query": x, "key": x, "value": x, "need_weights": False}
        return self.output((self.attention(**tokens) if self.by_name else self.attention(x, x, x))[0].mean(1))


@pytest.mark.parametrize("enabled", [False, True])
def test_layers_that_are_called_with_named_arguments_are_counted_too(enabled):
    flops, kept = [], []
    for by_name in (False, True):
        model = convert(Named(by_name), SapSettings(enabled=enabled), "batch")
        flops.append(layer_flops(model, torch.zeros(1, 5, 8)))
        kept.append(model_activations(model.to("meta"), torch.empty(2, 5, 8, device="meta")))
    assert flops[0] == flops[1]
    assert kept[0] == kept[1]
