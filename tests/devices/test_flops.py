from math import log2
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedmef_dist.devices.flops import FlopsLedger, RoundFlops
from fedmef_dist.layers.activation_pruning import PrunedLinear, Pruning, SapSettings
from fedmef_dist.layers.filters import STANDARD, filters_of, normalise_backward
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.models.gpt import GPTSettings
from fedmef_dist.sparsity import ParameterSpace


def ledger_of(model, example):
    space = ParameterSpace(model, prunable_weights(model))
    return FlopsLedger(model, space, example), [layer.size for layer in space.layers]


def two_layers():
    """18 prunable weights at 16 positions, 576 FLOPs; then 128 weights of the output layer, 256 FLOPs."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(32, 4))
    return ledger_of(model, torch.zeros(1, 1, 4, 4))[0]


def test_a_round_by_hand():
    ledger = two_layers()
    assert ledger.forward([18]) == 576 + 256
    assert ledger.forward([9]) == 288 + 256
    # Half the convolution forward and for its weights, not for the images; the output layer three times.
    step = 288 + 288 + 3 * 256
    assert ledger.round([9], samples=10, steps=2) == RoundFlops(10 * step, 0, 0, 0, 0, 0)


def test_gradients_of_inactive_weights_by_hand():
    one_batch = two_layers().round([9], samples=0, steps=1, gradient_samples=3)
    # A sparse pass forward, a dense one back.
    assert one_batch.gradients == one_batch.overhead == one_batch.total == 3 * (288 + 256 + 576 + 2 * 256)
    on_the_way = two_layers().round([9], samples=10, steps=2, dense_gradient_samples=4)
    assert on_the_way.gradients == 4 * (576 - 288)
    assert two_layers().forward([9]) == 288 + 256


class Unused(nn.Module):
    """Its second convolution is never called."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.output = NSConv2d(1, 2, 3), NSConv2d(2, 2, 3), nn.Linear(2, 4)

    def forward(self, x):
        return self.output(self.first(x).mean((2, 3)))


def test_a_layer_that_is_never_called_takes_nothing():
    ledger, counts = ledger_of(Unused(), torch.zeros(1, 1, 4, 4))
    assert counts == [18, 36]
    cost = ledger.round(counts, samples=10, steps=2)
    assert cost.normalisation == 2 * 17 * 18
    assert cost.training == 10 * (2 * 2 * 9 * 4 * 2 + 3 * 2 * 2 * 4)


def test_penalty_by_hand():
    assert two_layers().round([9], samples=10, steps=3, extrusion_steps=2).extrusion == 2 * 4 * 9


def test_total_is_training_and_overhead():
    cost = RoundFlops(1, 2, 4, 8, 16, 32)
    assert (cost.overhead, cost.total) == (62, 63)


class Elementwise(TorchDispatchMode):
    """Adds up the operations on tensors of so many elements or more."""

    COSTS: ClassVar = {"sum": 1, "sub": 1, "sub_": 1, "mul": 1, "mul_": 1, "addcmul_": 2, "bmm": 2}
    REST: ClassVar = {"view", "unsqueeze", "new_full", "ones_like"}

    def __init__(self, elements):
        super().__init__()
        self.elements, self.flops = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        largest = max((arg.numel() for arg in args if isinstance(arg, torch.Tensor)), default=0)
        name = func._overloadpacket.__name__
        if largest >= self.elements and name not in self.REST:
            self.flops += self.COSTS[name] * largest
        return func(*args, **(kwargs or {}))


def test_normalisation_does_what_is_counted_for_each_weight():
    theta, gain = torch.randn(3, 40), torch.ones(3)
    with Elementwise(theta.numel()) as forward:
        filters_of(theta, None, STANDARD).weight(gain)
    with Elementwise(theta.numel()) as backward:
        filters = filters_of(theta, None, STANDARD)
        filters.weight(gain)
        normalise_backward(torch.randn(3, 40), gain, None, filters)
    # The sum of the gradients is made as a product with the mask, of which the ledger counts the sum alone.
    assert (forward.flops, backward.flops) == (5 * 120, (12 + 1) * 120)


def test_normalised_weights_take_17_flops_a_step():
    model = nn.Sequential(NSConv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), NSLinear(2, 4), nn.Linear(4, 2))
    ledger, sizes = ledger_of(model, torch.zeros(1, 1, 5, 5))
    assert sizes == [18, 36, 8]
    assert ledger.round([9, 20, 4], samples=7, steps=3).normalisation == 3 * 17 * (9 + 4)


@pytest.mark.parametrize(("ratio", "choices"), [(0.5, 16 * log2(16)), (0.0, 0)])
def test_layers_that_prune_choose_among_their_inputs(ratio, choices):
    pruning = Pruning(ratio, storage=torch.float16)
    model = nn.Sequential(nn.Linear(8, 16), PrunedLinear(16, 4, pruning=pruning), nn.Linear(4, 2))
    ledger, sizes = ledger_of(model, torch.zeros(1, 8))
    assert ledger.round(sizes, samples=10, steps=1, gradient_samples=2).selection == 12 * choices


def test_first_and_output_layer_choose_only_where_they_prune():
    def selection(**sap):
        model = build_model(
            ModelSettings(name="cnn", hidden=0),
            SapSettings(enabled=True, **sap),
            norm="nsconv",
            classes=10,
            shape=(1, 8, 8),
            seed=0,
        )
        ledger, sizes = ledger_of(model, torch.zeros(1, 1, 8, 8))
        return ledger.round(sizes, samples=1, steps=1).selection

    assert selection(first_layer=True) - selection() == 64 * log2(64)
    assert selection(output_layer=True) > selection()


def test_lean_attention_costs_its_forward_pass_and_normalisation_again():
    settings = ModelSettings(name="gpt", gpt=GPTSettings(depth=1, width=8, heads=2))
    model = build_model(settings, SapSettings(enabled=True), norm="nsconv", classes=10, shape=(6,), seed=0)
    ledger, sizes = ledger_of(model, torch.zeros(1, 6, dtype=torch.int64))
    assert sizes == [192, 64, 256, 256]
    cost = ledger.round([96, 64, 256, 256], samples=2, steps=1, gradient_samples=1)
    # Half of the projection of 6 tokens, and two products of 6 tokens with 6 tokens of 8 features.
    assert cost.recomputation == 3 * (2 * 6 * 96 + 2 * 2 * 6 * 6 * 8)
    assert cost.normalisation == (17 + 5) * 96 + 17 * (64 + 256 + 256)


@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet_v2"])
def test_half_a_mask_halves_the_prunable_layers_alone(name):
    sap = SapSettings(enabled=False)
    model = build_model(ModelSettings(name=name), sap, norm="batch", classes=10, shape=(3, 32, 32), seed=0)
    ledger, sizes = ledger_of(model, torch.zeros(1, 3, 32, 32))
    full, half, none = (ledger.sample([size * twice // 2 for size in sizes]) for twice in (2, 1, 0))
    assert all(size % 2 == 0 for size in sizes)
    output = list(model.modules())[-1]
    assert none.forward == none.backward / 2 == 2 * output.weight.numel()
    assert half.forward - none.forward == (full.forward - none.forward) / 2
    assert half.backward - none.backward == (full.backward - none.backward) / 2
