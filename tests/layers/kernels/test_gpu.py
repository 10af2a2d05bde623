"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter, and compiled for a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which torch's CUDA wheels bring: pip install triton")

from device_on_cpu import take_the_cpu_for_a_device
from torch import nn
from torch.nn import functional as F

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.layers import kernels
from fedmef_dist.layers.activation_pruning import LOSSLESS, Pruning
from fedmef_dist.layers.filters import EPSILON, Normaliser, filters_of, normalise_backward
from fedmef_dist.layers.kernels import gpu, gpu_filters, pattern, patterns, portable
from fedmef_dist.layers.lean import LeanReLU, LeanReLU6
from fedmef_dist.layers.nsconv import NormalisedLayer, NSConv2d, NSLinear
from fedmef_dist.models import prunable_weights
from fedmef_dist.sparsity import Mask, ParameterSpace

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter takes a second for what a GPU does in microseconds.
LENGTHS = [1, 1000, 5003, 300_001] if DEVICE == "cuda" else [9, 2500]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64] if DEVICE == "cuda" else [torch.float32]


def same(mine, theirs):
    return all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def two_rows(length, dtype):
    rows = torch.randn(2, length, generator=torch.Generator().manual_seed(length)).to(DEVICE, dtype)
    rows[0].relu_()
    rows[1, ::3] = 1
    rows[1, length // 2] = float("nan")
    return patterns(rows)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_the_kernels_are_those_in_torchs_operations_bit_for_bit(length, dtype):
    rows = two_rows(length, dtype)
    for count in {1, (length + 1) // 2, length} if DEVICE == "cuda" else {(length + 1) // 2}:
        cut = portable.find_threshold(rows, count)
        assert same(gpu.find_threshold(rows, count), cut)
        ranks = torch.tensor([count, max(count // 2, 1)], device=DEVICE)
        assert same(gpu.find_threshold(rows, ranks), portable.find_threshold(rows, ranks))
        assert torch.equal(gpu.count_from(rows, cut[0]), portable.count_from(rows, cut[0]))
        expected = portable.pack(rows, *cut, count)
        for bitmap, values in (gpu.pack(rows, *cut, count), gpu.pack_largest(rows, count)):
            assert same((bitmap[:, : -(-length // 8)], values), expected)
            assert torch.equal(gpu.unpack(bitmap, values, length), portable.unpack(*expected, length))
    gate = gpu.pack_between(rows[1], pattern(1.5, dtype))
    assert torch.equal(gate, portable.pack_between(rows[1], pattern(1.5, dtype)))
    assert torch.equal(gpu.select(gate, rows[1]), portable.select(gate, rows[1]))


def test_what_does_not_fit_is_left_out():
    rows = patterns(torch.ones(1, 3000, device=DEVICE))
    cut = portable.find_threshold(rows, 2500)
    bitmap, values = gpu.pack(rows, *cut, 1000)
    assert same((bitmap[:, :375], values), portable.pack(rows, *cut, 1000))
    assert torch.equal(gpu.unpack(bitmap, values, 3000)[:, :1000], rows[:, :1000])


@pytest.mark.parametrize("ceiling", [None, 1.5])
def test_clipping_is_torchs_and_gives_the_gate(ceiling):
    x = torch.randn(2100, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x[:6] = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), -float("nan")])
    row = patterns(x)
    high = torch.iinfo(row.dtype).max if ceiling is None else pattern(ceiling, x.dtype)
    expected = F.relu(x) if ceiling is None else F.hardtanh(x, 0.0, ceiling)
    gate = portable.pack_between(row, high)
    for out in (torch.empty_like(x), x):
        assert torch.equal(gpu.clip(row, high, pattern(float("inf"), x.dtype), patterns(out)), gate)
        torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("columns", [1, 27, 1100])
def test_fused_filters_are_those_in_torchs_operations(columns, centre):
    generator = torch.Generator().manual_seed(columns)
    theta, grad = torch.randn(2, 6, columns, generator=generator).to(DEVICE)
    gain = torch.rand(6, generator=generator).to(DEVICE) + 0.5
    mask = (
        torch.rand(6, columns, generator=generator).to(DEVICE)
        < torch.tensor([[0], [1], [2], [9], [9], [9]]).to(DEVICE) / 10
    )
    mask[1, 1:] = False  # no active weight, one, some, all
    theta *= mask
    theta[3] *= 1e-4  # where epsilon acts
    for active in (mask, None):
        normaliser, count = Normaliser(1.7, centre), None if active is None else mask.sum(1, keepdim=True).float()
        filters = filters_of(theta, active, normaliser, count)
        rows = gpu_filters.FilterRows(theta, active, gain, 1.7, EPSILON, centre)
        torch.testing.assert_close(rows.weight(), filters.weight(gain), rtol=1e-5, atol=1e-5)
        filters = filters_of(theta, active, normaliser, count)  # the weight took the place of its deviation
        mine, theirs = rows.gradients(grad.clone()), normalise_backward(grad.clone(), gain, active, filters)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert same(mine, rows.gradients(grad.clone()))


@pytest.mark.parametrize("masked", [False, True])
def test_filters_of_a_flat_vector_are_those_of_each_weight(masked):
    """Two weights of filters of 9 and of 1100 elements, of which the second is not centred, and something behind."""
    generator = torch.Generator().manual_seed(9)
    blocks = [gpu_filters.Block(0, 4, 9, 2240, 1.7, True), gpu_filters.Block(40, 2, 1100, 2244, 1.2, False)]
    values, grad = torch.randn(2, 2250, generator=generator).to(DEVICE)
    mask = (torch.rand(2240, generator=generator) < 0.5).to(DEVICE)
    values[:2240] *= mask
    if not masked:
        mask = None
    flat, out = gpu_filters.FlatFilters(blocks, EPSILON, values.device), torch.full_like(values[:2240], 7)
    flat.weights(values, mask, out)
    found = grad.clone()
    flat.gradients(found, values, mask)
    expected, expected_out = grad.clone(), torch.full_like(out, 7)
    for start, filters, size, gains, *normaliser in blocks:
        piece, own_gains = slice(start, start + filters * size), slice(gains, gains + filters)
        theta, part, active = (
            None if whole is None else whole[piece].view(filters, size) for whole in (values, grad.clone(), mask)
        )
        one = filters_of(theta, active, Normaliser(*normaliser))
        of_theta, of_gain = normalise_backward(part, values[own_gains], active, one)
        expected[piece], expected[own_gains] = of_theta.flatten(), of_gain
        expected_out[piece] = one.weight(values[own_gains]).flatten()
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_layers_through_the_kernels_are_those_of_the_cpu(channels_last, monkeypatch):
    """Outputs and gradients within rounding; on the device the same bits twice, into memory of the same order."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6).contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    model = nn.Sequential(
        NSConv2d(3, 8, 3, padding=1),
        LeanReLU(inplace=True),
        NSConv2d(8, 8, 3, padding=1, pruning=Pruning(0.9)),
        LeanReLU6(),
        NSConv2d(8, 4, 1, pruning=LOSSLESS),
    )
    mask = torch.rand(8, 8, 3, 3) < 0.5
    with torch.no_grad():
        model[2].weight.mul_(mask)

    def run(device):
        inputs, layers = x.detach().to(device).requires_grad_(), model.to(device)
        layers[2].bind_mask(mask.to(device))
        layers.zero_grad()
        output = layers(inputs * 1)
        output.square().sum().backward()
        return [output.detach(), inputs.grad, *(parameter.grad.clone() for parameter in layers.parameters())]

    on_cpu = run("cpu")
    if DEVICE == "cpu":
        take_the_cpu_for_a_device(monkeypatch)
        monkeypatch.setattr(kernels, "_kernels", lambda device: gpu)
    first, second = run(DEVICE), run(DEVICE)
    assert same(first, second)
    for mine, theirs in zip(first, on_cpu, strict=True):
        assert mine.stride() == theirs.stride()
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_a_model_that_normalises_its_filters_together_has_the_cpus_gradient(masked, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(4, 3, 6, 6, generator=generator), torch.tensor([0, 1, 2, 3])

    def gradient(device):
        torch.manual_seed(0)
        layers = [NSConv2d(3, 8, 3, padding=1), LeanReLU(inplace=True), NSConv2d(8, 8, 3, pruning=Pruning(0.5))]
        model = nn.Sequential(*layers, nn.Flatten(), NSLinear(128, 5, normaliser=Normaliser(1.2)), nn.Linear(5, 4))
        space = ParameterSpace(model.to(device), prunable_weights(model))
        if masked:
            active = torch.rand(space.n_prunable, generator=torch.Generator().manual_seed(1)) < 0.5
            space.set_mask(Mask(active.to(device), 1))
        client = Client(model, space, OptimizerSettings(), autocast=False)
        for _ in range(2):
            space.begin_backward()
            client.loss((x.to(device), labels.to(device))).backward()
            space.end_backward()
        assert all(layer.acting is None for layer in model.modules() if isinstance(layer, NormalisedLayer))
        return space.gradient.cpu()

    on_cpu, together = gradient("cpu"), []
    if DEVICE == "cpu":
        take_the_cpu_for_a_device(monkeypatch)
        monkeypatch.setattr(kernels, "_kernels", lambda device: gpu)
    whole = gpu_filters.FlatFilters.gradients
    monkeypatch.setattr(
        gpu_filters.FlatFilters, "gradients", lambda *of: (together.append(len(of[0]._rows)), whole(*of))
    )
    torch.testing.assert_close(gradient(DEVICE), on_cpu, rtol=1e-4, atol=1e-4)
    assert together == [21, 21]


def test_every_kernel_compiles_for_a_hopper_gpu(tmp_path):
    program = Path(__file__).with_name("compiling.py")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"_histogram", "_pack", "_unpack", "_clip", "_weight", "_gradients"} <= set(done.stdout.split())
