import pytest
import torch
from torch import nn

from fedmef_dist.clients.loss import cross_entropy
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.devices.device_memory import Activations, device_memory, model_activations
from fedmef_dist.devices.memory import ModuleBytes, measure_step
from fedmef_dist.layers.activation_pruning import PrunedConv2d, Pruning, SapSettings
from fedmef_dist.layers.layernorm import LeanLayerNorm
from fedmef_dist.layers.lean import LeanLeakyReLU, LeanMaxPool2d, LeanReLU, LeanReLU6, LeanSiLU
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.random import ChannelDropout, Dropout, StochasticDepth
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.models.gpt import GPTSettings
from fedmef_dist.sparsity import Mask, ParameterSpace

BATCH, CHANNELS, SIDE = 4, 8, 10
COUNT = BATCH * CHANNELS * SIDE * SIDE
IMAGE = 4 * COUNT


def modelled(*layers, dtype=torch.float32):
    """Bytes of each layer, and the transient."""
    model = nn.Sequential(*layers, nn.Flatten()).to("meta", dtype)
    activations = model_activations(model, torch.empty(BATCH, CHANNELS, SIDE, SIDE, dtype=dtype, device="meta"))
    return {module.name: module.bytes for module in activations.modules if module.name}, activations.transient


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(8, 4, 3), IMAGE),
        (PrunedConv2d(8, 4, 3, pruning=Pruning(0.75)), COUNT // 8 + COUNT),
        (NSConv2d(8, 4, 3, pruning=Pruning(0.5)), COUNT // 8 + 2 * COUNT),
        # Of all 3,200 elements 1,066.67 are kept, rounded up; or of 800 a sample 266.67.
        (PrunedConv2d(8, 4, 3, pruning=Pruning(2 / 3)), COUNT // 8 + 4 * 1067),
        (PrunedConv2d(8, 4, 3, pruning=Pruning(2 / 3, per_sample=True)), COUNT // 8 + 4 * BATCH * 267),
        (PrunedConv2d(8, 4, 3, pruning=Pruning(0.75, storage=torch.float16)), COUNT // 8 + COUNT // 2),
        (PrunedConv2d(8, 4, 3, pruning=Pruning(storage=torch.float16)), IMAGE // 2),
        (nn.BatchNorm2d(8), IMAGE + 2 * 4 * 8),
        (nn.GroupNorm(2, 8), IMAGE + 2 * 4 * BATCH * 2),
        (nn.ReLU(), IMAGE),
        (nn.ReLU6(inplace=True), IMAGE),
        (nn.MaxPool2d(2), IMAGE + 8 * COUNT // 4),
        (nn.AdaptiveAvgPool2d(2), IMAGE),
        (nn.AdaptiveAvgPool2d(1), None),
        (LeanReLU(), COUNT // 8),
        (LeanReLU6(), COUNT // 8),
        (LeanLeakyReLU(), COUNT // 8),
        (LeanSiLU(), COUNT),
        (LeanMaxPool2d(2), COUNT // 4),
        (Dropout(0.5), COUNT // 8),
        (Dropout(0.0), None),
        (ChannelDropout(0.5), 4 * BATCH * 8),
        (StochasticDepth(0.5, "row"), 4 * BATCH),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_layer_by_hand(layer, expected):
    assert modelled(layer)[0].get("0") == expected


@pytest.mark.parametrize(
    ("pruning", "expected"),
    [
        (Pruning(0.5), 4 * 6 * 8 // 8 + 4 * 4 * 6 * 8 // 2),
        (Pruning(0.0, storage=torch.bfloat16, packs=True), 2 * 4 * 6 * 8),  # what is normalised has no zeros to pack
    ],
)
def test_lean_layer_normalisation_by_hand_and_as_measured(pruning, expected):
    model = nn.Sequential(nn.Linear(8, 8), LeanLayerNorm(8, pruning=pruning), nn.Flatten())
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    measured = {module.name: module.bytes for module in measure_step(model, lambda: model(x).square().sum()).modules}
    found = model_activations(model.to("meta"), x.to("meta")).modules
    assert {module.name: module.bytes for module in found}["1"] == measured["1"] == expected + 4 * 4 * 6


def test_batch_normalisation_of_features_by_hand():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).to("meta")
    found = {module.name: module.bytes for module in model_activations(model, torch.empty(4, 6, device="meta")).modules}
    assert (found["0"], found["1"]) == (4 * 4 * 6, 4 * 4 * 5 + 2 * 4 * 5)


def test_a_tensor_that_several_layers_keep_counts_for_the_first():
    # The ReLU works in place on what the norm puts out: its output is the second convolution's input.
    layers = (nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    assert modelled(*layers)[0] == {"0": IMAGE, "1": IMAGE + 64, "2": IMAGE, "4": IMAGE}


def test_half_precision_halves_what_is_kept_and_adds_copies_of_stock_weights():
    sizes, _ = modelled(nn.Conv2d(8, 8, 3), NSConv2d(8, 8, 3, pruning=Pruning(0.5)), dtype=torch.bfloat16)
    inner = BATCH * 8 * 8 * 8
    assert sizes == {"0": IMAGE // 2 + 2 * 8 * 8 * 9, "1": inner // 8 + inner}


def test_the_transient_is_the_largest_layers_input_and_output_and_what_it_restores():
    small = 4 * BATCH * 2 * SIDE * SIDE
    assert modelled(nn.Conv2d(8, 2, 1), nn.Conv2d(2, 2, 1))[1] == IMAGE + small
    assert modelled(NSConv2d(8, 2, 1, pruning=Pruning(0.9)))[1] == 2 * IMAGE + small


@pytest.mark.parametrize(
    ("norm", "enabled", "precision"),
    [
        ("batch", False, "fp32"),
        ("batch", False, "bf16"),
        ("nsconv", True, "fp32"),
        ("nsconv", True, "bf16"),
        ("group", True, "fp32"),
    ],
)
@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0"])
def test_every_module_agrees_with_the_ledger(name, norm, enabled, precision):
    settings = ModelSettings(name=name, width=0.25 if name == "mobilenet_v2" else 1.0)
    # So little is kept that hardly a layer has fewer elements than that which are not 0.
    sap = SapSettings(enabled=enabled, prune_ratio=0.95)
    foretold, held = both(settings, sap, norm, torch.randn(2, 3, 16, 16), precision)
    assert foretold == pytest.approx(held, rel=0.05, abs=16)


def test_what_is_packed_is_at_most_what_is_modelled():
    foretold, held = both(
        ModelSettings(name="resnet8"), SapSettings(prune_ratio=0.3), "nsconv", torch.randn(2, 3, 16, 16)
    )
    assert foretold.keys() == held.keys()
    assert all(held[name] <= foretold[name] for name in held)
    assert sum(held.values()) > 0.6 * sum(foretold.values())


@pytest.mark.parametrize(("norm", "enabled"), [("layer", False), ("layer", True), ("nsconv", False), ("nsconv", True)])
def test_a_gpt_agrees_with_the_ledger_but_for_where_attention_puts_its_output(norm, enabled):
    settings = ModelSettings(name="gpt", gpt=GPTSettings(depth=2, width=16, heads=2))
    sap = SapSettings(enabled=enabled, prune_ratio=0.95)
    foretold, held = both(settings, sap, norm, torch.randint(10, (2, 12)))
    for sizes in (foretold, held):
        for block in ("blocks.0", "blocks.1"):
            sizes[block] = sizes.pop(f"{block}.attention") + sizes.pop(f"{block}.attention.out_proj", 0)
    assert foretold == pytest.approx(held, rel=0.05, abs=16)


def both(settings, sap, norm, inputs, precision="fp32"):
    """Bytes of each module of a network with ten classes: as modelled, and as the ledger has it."""

    def build():
        return build_model(settings, sap, norm=norm, classes=10, shape=inputs.shape[1:], seed=0)

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    on_meta = torch.empty(inputs.shape, device="meta", dtype=kind if inputs.is_floating_point() else inputs.dtype)
    foretold = model_activations(build().to("meta", kind), on_meta)
    model = build().train()
    labels = torch.zeros(len(inputs) if inputs.is_floating_point() else inputs.shape, dtype=torch.int64)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return cross_entropy(model(inputs), labels)

    held = measure_step(model, forward, model.zero_grad)
    return tuple({module.name: module.bytes for module in one.modules} for one in (foretold, held))


def test_device_memory_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 5, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))
    space = ParameterSpace(model, ["0.weight"])
    active = torch.zeros(100, dtype=torch.bool)
    active[::10] = True
    space.set_mask(Mask(active))
    activations = Activations([ModuleBytes("a", "Conv2d", 1000), ModuleBytes("b", "Linear", 500)], transient=300)
    plain = device_memory(space, space.layer_counts(), OptimizerSettings(), activations)
    # Ten of 100 weights as COO (7 bits an index, one byte of a tag); norm 8, linear 10, running statistics 8.
    assert plain.parameters == (1 + 9 + 40) + 4 * (8 + 10 + 8)
    assert plain.gradients == 4 * (10 + 8 + 10)
    assert (plain.optimizer, plain.activations, plain.transient) == (0, 1500, 300)
    assert plain.total == 154 + 112 + 1500 + 300
    assert (
        device_memory(space, space.layer_counts(), OptimizerSettings(momentum=0.9, prox_mu=0.1), activations).optimizer
        == 2 * 112
    )
