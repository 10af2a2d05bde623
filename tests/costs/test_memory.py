import pytest
import torch
from torch import nn

from fedmef_dist.costs.memory import ModuleBytes, measure_step
from fedmef_dist.layers.lean import LeanReLU
from fedmef_dist.layers.nsconv import NSConv2d
from fedmef_dist.layers.pruning import PrunedConv2d, Pruning
from fedmef_dist.sparsity import ParameterSpace

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
    # Weight and mask 8 * 8 * 9; gain and two biases, weight of the norm; its statistics and one int64 counter.
    assert memory.state_bytes == 4 * (3 * 576 + 2 * 4 * 8 + 2 * 8) + 8


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
    assert trap == 3 * IMAGE + 3 * packed
    assert lean == 3 * count // 8 + 3 * packed
    assert lean < dense < trap


def test_peak_by_hand():
    model = nn.Sequential(nn.ReLU(), nn.ReLU())
    x = torch.randn(1000, 250, requires_grad=True)
    x.grad = torch.zeros_like(x)
    million = 1000 * 250 * 4
    memory = measure_step(model, lambda: model(x).sum())
    # Both outputs live until the last ReLU's gradient is there; the first one's may add a third buffer.
    assert 2 * million <= memory.peak_bytes <= 3 * million + 4096


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
