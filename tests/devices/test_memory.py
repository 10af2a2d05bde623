import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import Function

from fedmef_dist.devices.memory import ModuleBytes, measure_step
from fedmef_dist.layers.activation_pruning import PrunedConv2d, PrunedLinear, Pruning, SapSettings
from fedmef_dist.layers.lean import (
    LeanAdaptiveAvgPool2d,
    LeanAvgPool2d,
    LeanGELU,
    LeanHardswish,
    LeanMaxPool2d,
    LeanReLU,
    LeanReLU6,
    LeanSiLU,
)
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.layers.random import Dropout
from fedmef_dist.models import ModelSettings, build_model
from fedmef_dist.models.convert import replace_module
from fedmef_dist.sparsity import Mask, ParameterSpace

SIDE = 16
IMAGE = 4 * 2 * 8 * SIDE * SIDE  # bytes of a float32 (2, 8, 16, 16)


def ledger(*layers):
    model = nn.Sequential(*layers)
    x = torch.randn(2, 8, SIDE, SIDE)
    return measure_step(model, lambda: model(x).sum())


def test_by_hand():
    memory = ledger(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.MaxPool2d(2))
    # The ReLU's output is the second convolution's input: one storage. The pool keeps an int64 index an output.
    assert memory.modules == [
        ModuleBytes("0", "Conv2d", IMAGE),
        ModuleBytes("1", "ReLU", IMAGE),
        ModuleBytes("3", "MaxPool2d", IMAGE + IMAGE // 4 * 2),
    ]
    assert memory.activation_bytes == sum(module.bytes for module in memory.modules)


def test_a_view_counts_as_its_whole_storage_once():
    model = nn.Linear(4, 1, bias=False)
    x = torch.randn(10, 4)
    memory = measure_step(model, lambda: model(x[:2]).sum() + model(x[5:]).sum())
    assert memory.activation_bytes == 10 * 4 * 4


def test_what_is_kept_outside_of_modules_stands_under_the_models_name():
    model = nn.Linear(4, 3, bias=False)
    x = torch.randn(2, 4)
    memory = measure_step(model, lambda: model(x).exp().sum())
    assert memory.modules == [ModuleBytes("", "Linear", 2 * 4 * 4 + 2 * 3 * 4)]


def test_flat_vector_and_masks_do_not_count():
    model = nn.Sequential(NSConv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8).eval())
    space = ParameterSpace(model, ["0.weight"])
    x = torch.randn(2, 8, SIDE, SIDE)
    memory = measure_step(model, lambda: model(x).sum(), state=lambda: space.tensors)
    assert memory.activation_bytes == IMAGE + IMAGE
    # Weight 8 * 8 * 9; gain and two biases, weight of the norm; its statistics, one int64 counter, and one byte that
    # stands for the mask of a model of which nothing is pruned.
    dense = 4 * (2 * 576 + 2 * 4 * 8 + 2 * 8) + 8 + 1
    assert memory.state_bytes == dense
    space.set_mask(Mask(torch.rand(576) < 0.5))
    memory = measure_step(model, lambda: model(x).sum(), state=lambda: space.tensors)
    assert memory.activation_bytes == IMAGE + IMAGE
    # A byte a weight, and how many weights of each filter are active.
    assert memory.state_bytes == dense - 1 + 576 + 4 * 8


class Keeping(Function):
    """Multiplies by one; keeps its input as the given function says."""

    @staticmethod
    def forward(ctx, x, keep):
        keep(ctx, x * 1.0)
        return x * 1.0

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def keep_on_the_context(ctx, x):
    ctx.x = x


def keep_outside_of_torch(ctx, x):
    ctx.save_for_backward(torch.from_numpy(np.array(x.detach().numpy())))


def keep_as_it_should_be(ctx, x):
    ctx.save_for_backward(x)


@pytest.mark.parametrize(
    ("keep", "saved", "allocated"),
    [(keep_as_it_should_be, IMAGE, IMAGE), (keep_on_the_context, 0, IMAGE), (keep_outside_of_torch, IMAGE, 0)],
)
def test_the_two_measurements_disagree_where_a_function_hides_what_it_keeps(keep, saved, allocated):
    x = torch.randn(2, 8, SIDE, SIDE, requires_grad=True)
    memory = measure_step(nn.Identity(), lambda: Keeping.apply(x, keep).sum())
    assert memory.activation_bytes == saved
    assert memory.held_bytes == allocated + 4  # and the loss


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer",
    [
        PrunedConv2d(8, 8, 3, pruning=Pruning(0.5)),
        NSConv2d(8, 8, 3, pruning=Pruning(0.5)),
        NSConv2d(8, 8, 3, stride=2, groups=8, pruning=Pruning(0.9)),
        nn.Sequential(nn.Flatten(), PrunedLinear(8 * SIDE * SIDE, 4, pruning=Pruning(0.7))),
        nn.Sequential(nn.Flatten(), NSLinear(8 * SIDE * SIDE, 4, pruning=Pruning(0.7))),
        LeanReLU(),
        LeanReLU6(),
        LeanSiLU(),
        LeanHardswish(),
        LeanGELU(),
        LeanMaxPool2d(2),
        LeanAvgPool2d(2),
        LeanAdaptiveAvgPool2d(1),
        Dropout(0.5),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
    ],
    ids=lambda layer: type(layer[-1] if isinstance(layer, nn.Sequential) else layer).__name__,
)
def test_no_layer_hides_what_it_keeps(layer, precision):
    x = torch.randn(2, 8, SIDE, SIDE, requires_grad=True)
    model = nn.Sequential(layer)

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            return (model(x * 1.0) * 1.0).sum(dtype=torch.float32)

    memory = measure_step(model, forward)
    # The loss, and the two factors as tensors.
    assert memory.held_bytes == pytest.approx(memory.activation_bytes, abs=32)


def test_autocast_copies_count():
    model = nn.Linear(64, 32)
    x = torch.randn(8, 64, requires_grad=True)

    def forward():
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).sum()

    # Input and weight in two bytes an element.
    assert measure_step(model, forward).activation_bytes == 2 * (8 * 64 + 32 * 64)


def test_the_loss_counts():
    model = nn.Linear(64, 10, bias=False)
    x, labels = torch.randn(8, 64), torch.zeros(8, dtype=torch.int64)
    memory = measure_step(model, lambda: nn.functional.cross_entropy(model(x), labels))
    # The logarithms of the probabilities, the labels, the sum of the labels' weights; the weight itself is a parameter.
    assert memory.modules == [ModuleBytes("", "Linear", 4 * 8 * 64 + 4 * 8 * 10 + 8 * 8 + 4)]


def test_lean_activations_are_what_makes_activation_pruning_save():
    def stack(activation, ratio):
        return [
            layer
            for _ in range(3)
            for layer in (PrunedConv2d(8, 8, 3, padding=1, pruning=Pruning(ratio)), activation())
        ]

    count = IMAGE // 4
    packed = count // 8 + 4 * (count // 2)
    dense = ledger(*stack(nn.ReLU, 0.0)).activation_bytes
    trap = ledger(*stack(nn.ReLU, 0.5)).activation_bytes
    lean = ledger(*stack(LeanReLU, 0.5)).activation_bytes
    assert dense == 4 * IMAGE
    # A ReLU's zeros are never packed, and about half of its output is 0.
    assert 3 * IMAGE + 2.5 * packed < trap <= 3 * IMAGE + 3 * packed
    assert 3 * count // 8 + 2.5 * packed < lean <= 3 * count // 8 + 3 * packed
    assert lean < dense < trap


def held_mebibytes(name, norm, ratio, stock_relu):
    """Of a step on 16 images of 32 x 32 pixels."""
    sap = SapSettings(enabled=ratio > 0, prune_ratio=ratio)
    model = build_model(ModelSettings(name=name), sap, norm=norm, classes=10, shape=(3, 32, 32), seed=0)
    lean = [name for name, module in model.named_modules() if isinstance(module, LeanReLU)]
    for module in lean if stock_relu else []:
        replace_module(model, module, nn.ReLU(inplace=True))
    images = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(16, dtype=torch.int64)
    step = measure_step(model, lambda: nn.functional.cross_entropy(model(images), labels), model.zero_grad)
    return step.activation_bytes / 2**20


@pytest.mark.parametrize(("name", "expected"), [("resnet8", (9.2, 9.8, 0.9)), ("resnet18", (71.8, 76.2, 5.7))])
def test_pruning_the_convolutions_inputs_alone_makes_it_worse(name, expected):
    dense = held_mebibytes(name, "batch", 0.0, stock_relu=True)
    trap = held_mebibytes(name, "batch", 0.9, stock_relu=True)
    lean = held_mebibytes(name, "nsconv", 0.9, stock_relu=False)
    assert (dense, trap, lean) == pytest.approx(expected, abs=0.1)
    assert trap > dense > lean / 0.12


def test_peak_by_hand():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    x = torch.randn(1000, 250, requires_grad=True)
    x.grad = torch.zeros_like(x)
    million = 1000 * 250 * 4
    memory = measure_step(model, lambda: model(x).sum())
    # Both outputs live until the last ReLU's gradient is there; the first one's may add a third buffer.
    assert 2 * million <= memory.peak_bytes <= 3 * million + 4096


def test_the_peak_has_the_state_and_the_optimisers_step():
    model = nn.Linear(1000, 250, bias=False)
    x = torch.randn(1, 1000)
    velocity = []

    def update():
        velocity[:] = velocity or [torch.zeros_like(model.weight)]
        copies = [model.weight.detach().clone() for _ in range(5)]
        velocity[0] += sum(copies)

    memory = measure_step(model, lambda: model(x).sum(), update, lambda: velocity)
    million = 1000 * 250 * 4
    assert memory.state_bytes == 3 * million  # weight, gradient, velocity
    # Five copies and a partial sum, and, while the next one is made, the last.
    assert 9 * million <= memory.peak_bytes <= 10 * million + 4096


def test_what_was_there_before_the_step_does_not_lower_the_peak():
    million = 1000 * 250 * 4
    x = torch.randn(1000, 250, requires_grad=True)

    def measure(when_profiled):
        calls = iter([lambda: None, when_profiled])

        def step():
            next(calls)()
            return (x * 2.0).sum()

        return measure_step(nn.Identity(), step).peak_bytes

    def eight():
        return [torch.empty(million, dtype=torch.uint8) for _ in range(8)]

    kept = []
    assert measure(lambda: kept.extend(eight())) >= 9 * million
    kept.clear()
    # The profiler still knows their addresses, takes these for them, and will report that they are freed.
    kept.extend(eight())
    assert million <= measure(kept.clear) < 4 * million


def test_peak_falls_with_what_is_held():
    def peak(activation, ratio):
        layers = [(PrunedConv2d(8, 8, 3, padding=1, pruning=Pruning(ratio)), activation()) for _ in range(8)]
        return ledger(*[layer for pair in layers for layer in pair]).peak_bytes

    dense, lean = peak(nn.ReLU, 0.0), peak(LeanReLU, 0.9)
    assert dense >= 9 * IMAGE
    assert lean < dense - 3 * IMAGE


def test_hooks_are_gone_after_an_error():
    model = nn.Linear(4, 3)

    def fail():
        model(torch.zeros(1, 4))
        raise RuntimeError("no batch")

    with pytest.raises(RuntimeError, match="no batch"):
        measure_step(model, fail)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_a_gpu():
    model = nn.Sequential(nn.ReLU(), nn.ReLU()).append(nn.Linear(250, 1)).cuda()
    x = torch.randn(1000, 250, device="cuda")
    assert measure_step(model, lambda: model(x).sum()).peak_bytes >= 2 * 1000 * 250 * 4
