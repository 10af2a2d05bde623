"""The loops have the bits of torch's operations where those add up one number after the other, as on x86 they do.

So that this does not ask what a processor's library does, sums of products are made by numpy here, which promises it.
"""

import numpy as np
import pytest
import torch

from fedmef_dist.layers import filters, operations
from fedmef_dist.layers.filters import Normaliser, active_counts, filters_of, normalisation, normalise_backward
from fedmef_dist.layers.kernels import cpu, cpu_filters
from fedmef_dist.layers.nsconv import NSConv2d


def in_order(terms):
    """Sums over the first dimension, one term after the other, to 0."""
    return torch.from_numpy(np.add.accumulate(np.pad(terms.numpy(), ((1, 0), (0, 0))), 0, dtype=np.float32)[-1])


@pytest.fixture
def sums_in_order(monkeypatch):
    monkeypatch.setattr(filters, "_dot", lambda left, right: in_order((left * right).t()).unsqueeze(1))


def same_bits(mine, theirs):
    return torch.equal(mine.contiguous().view(torch.int32), theirs.contiguous().view(torch.int32))


def example(shape, density):
    """A raw weight, its mask, a gradient and the gain, in the order in which a parameter space holds them."""
    generator = torch.Generator().manual_seed(0)
    theta, grad = torch.randn(2, *shape, generator=generator)
    mask = None if density is None else torch.rand(shape, generator=generator) < density
    if len(shape) == 4:
        theta, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (theta, grad))
        mask = mask if mask is None else mask.contiguous(memory_format=torch.channels_last)
    return theta if mask is None else theta * mask, mask, grad, torch.rand(shape[0], generator=generator) + 0.5


@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("density", [None, 0.02, 0.5])
@pytest.mark.parametrize("shape", [(2, 3), (9, 7, 3, 3), (64, 1, 3, 3), (300, 1), (131, 1237), (96, 320, 3, 3)])
def test_a_weight_and_its_gradients_have_the_bits_of_the_operations(shape, density, centre, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu, "_WORTH_A_THREAD", 1000)
    theta, mask, grad, gain = example(shape, density)
    theta[1] *= 1e-4  # where epsilon acts
    normaliser = Normaliser(1.7, centre)
    mine = normalisation(theta, gain, mask, normaliser, None)
    assert isinstance(mine.rows, filters._InLoops)
    wanted = filters_of(theta, mask, normaliser).weight(gain)
    acting = mine.weight()
    assert same_bits(acting, wanted)
    assert acting.stride() == wanted.stride()
    of_theta, of_gain = normalise_backward(grad.clone(), gain, mask, filters_of(theta, mask, normaliser))
    found = mine.gradients(grad.clone())
    assert same_bits(found[0], of_theta)
    assert same_bits(found[1], of_gain)
    half = slice(shape[0] // 2, None)
    part = mine.part(half).gradients(grad[half].clone())
    assert same_bits(part[0], of_theta[half])
    assert same_bits(part[1], of_gain[half])


def test_what_goes_through_loops():
    theta, mask, _, gain = example((4, 3, 3, 3), 0.5)

    def uses_loops(theta, gain, mask):
        return not isinstance(
            normalisation(theta, gain, mask, Normaliser(), active_counts(theta, mask)), filters._InOperations
        )

    assert uses_loops(theta, gain, mask)
    assert not uses_loops(theta[:1], gain[:1], mask[:1])
    assert not uses_loops(theta.double(), gain.double(), mask)
    assert not uses_loops(theta, gain.clone().requires_grad_(), mask)
    with torch.no_grad():
        assert uses_loops(theta, gain.clone().requires_grad_(), mask)


@pytest.mark.parametrize("shape", [(1, 5), (7, 3), (1023, 33)])
def test_channels_are_summed_in_order(shape):
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert same_bits(cpu_filters.sum_channels(pixels), in_order(pixels))


def test_a_convolution_has_the_gradients_that_torch_gives_it(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer = NSConv2d(5, 6, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(16, 5, 4, 4).contiguous(memory_format=torch.channels_last)

    def gradients():
        layer.zero_grad()
        layer(x).square().sum().backward()
        return [parameter.grad for parameter in layer.parameters()]

    summed = []
    monkeypatch.setattr(cpu_filters, "sum_channels", lambda pixels: summed.append(pixels) or in_order(pixels))
    mine = gradients()
    assert summed[0].shape == (16 * 4 * 4, 6)
    monkeypatch.setattr(operations.Convolution, "_sums_in_order", lambda *_: False)
    for one, other in zip(mine, gradients(), strict=True):
        torch.testing.assert_close(one, other)  # the same bits on an AMD EPYC
    assert len(summed) == 1


@pytest.mark.parametrize(
    ("images", "dilation", "threads", "order"),
    [
        (8, 1, 1, torch.channels_last),
        (16, 2, 1, torch.channels_last),
        (16, 1, 2, torch.channels_last),
        (16, 1, 1, torch.contiguous_format),
    ],
)
def test_what_one_dnn_may_sum_in_another_order_it_sums_itself(images, dilation, threads, order, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_filters, "sum_channels", lambda _: pytest.fail("summed in order"))
    layer = NSConv2d(3, 4, 3, dilation=dilation).to(memory_format=order)
    layer(torch.randn(images, 3, 6, 6).contiguous(memory_format=order)).square().sum().backward()
