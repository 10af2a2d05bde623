"""The normalisation of filters on a GPU, in Triton: one launch forward, one more backward, a filter a program.

The sums have an order of their own, the same in every run, so the results are not those of torch's operations to the
bit; where Triton is there, these are the device's truth. What is computed is in ``nsconv.py``.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = (256, 1024)


@triton.jit
def _load_deviation(theta, mask, places, inside, mean, MASKED: tl.constexpr):
    deviation = tl.where(inside, tl.load(theta + places, mask=inside, other=0.0) - mean, 0.0)
    active = inside.to(tl.float32)
    if MASKED:
        active = tl.load(mask + places, mask=inside, other=0).to(tl.float32)
    return deviation * active, active


@triton.jit
def _filter(
    theta, mask, counts, n, gamma, epsilon, MASKED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """1 / N or 0, the mean, the scale, and N var or infinity; see ``Filters``."""
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    count = tl.zeros((), tl.float32) + n
    if MASKED:
        count = tl.load(counts + row)
    inverse = tl.zeros((), tl.float32)
    mean = tl.zeros((), tl.float32)
    if CENTRED:
        inverse = tl.where(count > 1, 1 / tl.maximum(count, 1.0), 0.0)
        total = tl.zeros([BLOCK], tl.float32)
        first = 0
        while first < n:
            places = first + tl.arange(0, BLOCK)
            total += tl.load(theta + start + places, mask=places < n, other=0.0)
            first += BLOCK
        mean = tl.sum(total, 0) * inverse
    square = tl.zeros([BLOCK], tl.float32)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        deviation, _active = _load_deviation(theta + start, mask + start, places, places < n, mean, MASKED)
        square += deviation * deviation
        first += BLOCK
    squares = tl.sum(square, 0)
    scale = tl.where(count > 1, gamma * tl.rsqrt(tl.maximum(squares, epsilon)), 1.0)
    squares = tl.where((count > 1) & (squares > epsilon), squares, float("inf"))
    return inverse, mean, scale, squares


@triton.jit(do_not_specialize=["gamma", "epsilon"])
def _weight(
    theta, mask, counts, gain, out, n, gamma, epsilon,
    MASKED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    _inverse, mean, scale, _squares = _filter(theta, mask, counts, n, gamma, epsilon, MASKED, CENTRED, BLOCK)
    factor = scale * tl.load(gain + row)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        inside = places < n
        deviation, _active = _load_deviation(theta + start, mask + start, places, inside, mean, MASKED)
        tl.store(out + start + places, deviation * factor, mask=inside)
        first += BLOCK


@triton.jit(do_not_specialize=["gamma", "epsilon"])
def _gradients(
    grad, theta, mask, counts, gain, grad_theta, grad_gain, n, gamma, epsilon,
    MASKED: tl.constexpr, CENTRED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    start = row.to(tl.int64) * n
    inverse, mean, scale, squares = _filter(theta, mask, counts, n, gamma, epsilon, MASKED, CENTRED, BLOCK)
    along_parts = tl.zeros([BLOCK], tl.float32)
    total_parts = tl.zeros([BLOCK], tl.float32)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        inside = places < n
        deviation, active = _load_deviation(theta + start, mask + start, places, inside, mean, MASKED)
        part = tl.load(grad + start + places, mask=inside, other=0.0)
        along_parts += part * deviation
        total_parts += part * active
        first += BLOCK
    along = tl.sum(along_parts, 0)
    shift = tl.sum(total_parts, 0) * inverse
    tl.store(grad_gain + row, along * scale)
    factor = scale * tl.load(gain + row)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        inside = places < n
        deviation, _active = _load_deviation(theta + start, mask + start, places, inside, mean, MASKED)
        part = tl.load(grad + start + places, mask=inside, other=0.0)
        tl.store(grad_theta + start + places, (part - shift - deviation * (along / squares)) * factor, mask=inside)
        first += BLOCK


class FilterRows(NamedTuple):
    """A weight as the kernels see it.

    Attributes:
        theta: float32 (O, n), contiguous; 0 where inactive.
        mask: bool (O, n), contiguous; None: all are active.
        counts: float32 (O, 1), the active weights of each filter; None where there is no mask.
        gain: float32 (O,).
        gamma: of the normalisation.
        epsilon: below it the squares of a filter do not count.
        centred: whether the filter's mean is subtracted.
    """

    theta: Tensor
    mask: Tensor | None
    counts: Tensor | None
    gain: Tensor
    gamma: float
    epsilon: float
    centred: bool

    def weight(self) -> Tensor:
        """The weight that acts, (O, n)."""
        out = torch.empty_like(self.theta)
        self._launch(_weight, (), out)
        return out

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of theta, which overwrites ``grad`` (float32 (O, n), contiguous), and of the gain."""
        grad_gain = torch.empty_like(self.gain, memory_format=torch.contiguous_format)
        self._launch(_gradients, (grad,), grad, grad_gain)
        return grad, grad_gain

    def _launch(self, kernel: triton.JITFunction, inputs: tuple[Tensor, ...], *outputs: Tensor) -> None:
        rows, columns = self.theta.shape
        block = BLOCKS[columns > BLOCKS[0]]
        is_masked = self.mask is not None
        mask = self.mask.view(torch.uint8) if self.mask is not None else self.theta
        count = self.counts if self.counts is not None else self.gain
        kernel[(rows,)](
            *inputs, self.theta, mask, count, self.gain, *outputs,
            columns, self.gamma, self.epsilon, is_masked, self.centred, block,
        )  # fmt: skip
