"""The normalisation of filters on a GPU, in Triton: one launch each way, a filter a program.

The sums have an order of their own, the same in every run, so the results are not those of torch's operations to the
bit; where Triton is there, these are the device's truth. What is computed is in ``filters.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCKS = (256, 1024)


@triton.jit
def _find(n, centred, gamma, filters, gammas, IS_ONE: tl.constexpr):
    """Of this program's filter: where it begins, its weights, the place of its gain, whether it is centred, gamma."""
    row = tl.program_id(0).to(tl.int64)
    if IS_ONE:
        start, size, place = row * n, n, row
    else:
        start, size, place = tl.load(filters + 4 * row), tl.load(filters + 4 * row + 1), tl.load(filters + 4 * row + 2)
        centred, gamma = tl.load(filters + 4 * row + 3), tl.load(gammas + row)
    return start, size, place, centred, gamma


@triton.jit
def _load_active(mask, places, inside, MASKED: tl.constexpr):
    active = inside.to(tl.float32)
    if MASKED:
        active = tl.load(mask + places, mask=inside, other=0).to(tl.float32)
    return active


@triton.jit
def _load_deviation(theta, mask, places, inside, mean, MASKED: tl.constexpr):
    deviation = tl.where(inside, tl.load(theta + places, mask=inside, other=0.0) - mean, 0.0)
    active = _load_active(mask, places, inside, MASKED)
    return deviation * active, active


@triton.jit
def _filter(theta, mask, n, centred, gamma, epsilon, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """1 / N or 0, the mean, the scale, and N var or infinity; see ``Filters``."""
    active_parts = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        inside = places < n
        active_parts += _load_active(mask, places, inside, MASKED)
        total += tl.load(theta + places, mask=inside, other=0.0)
        first += BLOCK
    count = tl.sum(active_parts, 0)
    inverse = tl.where((centred != 0) & (count > 1), 1 / tl.maximum(count, 1.0), 0.0)
    mean = tl.sum(total, 0) * inverse
    square = tl.zeros([BLOCK], tl.float32)
    first = 0
    while first < n:
        places = first + tl.arange(0, BLOCK)
        deviation, _active = _load_deviation(theta, mask, places, places < n, mean, MASKED)
        square += deviation * deviation
        first += BLOCK
    squares = tl.sum(square, 0)
    scale = tl.where(count > 1, gamma * tl.rsqrt(tl.maximum(squares, epsilon)), 1.0)
    squares = tl.where((count > 1) & (squares > epsilon), squares, float("inf"))
    return inverse, mean, scale, squares


@triton.jit(do_not_specialize=["centred", "gamma", "epsilon"])
def _weight(
    theta, mask, gains, out, n, centred, gamma, filters, gammas, epsilon,
    IS_ONE: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, size, place, is_centred, own_gamma = _find(n, centred, gamma, filters, gammas, IS_ONE)
    theta += start
    mask += start
    _inverse, mean, scale, _squares = _filter(theta, mask, size, is_centred, own_gamma, epsilon, MASKED, BLOCK)
    factor = scale * tl.load(gains + place)
    first = 0
    while first < size:
        places = first + tl.arange(0, BLOCK)
        inside = places < size
        deviation, _active = _load_deviation(theta, mask, places, inside, mean, MASKED)
        tl.store(out + start + places, deviation * factor, mask=inside)
        first += BLOCK


@triton.jit(do_not_specialize=["centred", "gamma", "epsilon"])
def _gradients(
    grad, theta, mask, gains, grad_gains, n, centred, gamma, filters, gammas, epsilon,
    IS_ONE: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    start, size, place, is_centred, own_gamma = _find(n, centred, gamma, filters, gammas, IS_ONE)
    grad += start
    theta += start
    mask += start
    inverse, mean, scale, squares = _filter(theta, mask, size, is_centred, own_gamma, epsilon, MASKED, BLOCK)
    along_parts = tl.zeros([BLOCK], tl.float32)
    total_parts = tl.zeros([BLOCK], tl.float32)
    first = 0
    while first < size:
        places = first + tl.arange(0, BLOCK)
        inside = places < size
        deviation, active = _load_deviation(theta, mask, places, inside, mean, MASKED)
        part = tl.load(grad + places, mask=inside, other=0.0)
        along_parts += part * deviation
        total_parts += part * active
        first += BLOCK
    along = tl.sum(along_parts, 0)
    shift = tl.sum(total_parts, 0) * inverse
    tl.store(grad_gains + place, along * scale)
    factor = scale * tl.load(gains + place)
    first = 0
    while first < size:
        places = first + tl.arange(0, BLOCK)
        inside = places < size
        deviation, _active = _load_deviation(theta, mask, places, inside, mean, MASKED)
        part = tl.load(grad + places, mask=inside, other=0.0)
        tl.store(grad + places, (part - shift - deviation * (along / squares)) * factor, mask=inside)
        first += BLOCK


class FilterRows(NamedTuple):
    """One weight as the kernels see it.

    Attributes:
        theta: float32 (O, n), contiguous; 0 where inactive.
        mask: bool (O, n), contiguous; None: all are active.
        gain: float32 (O,).
        gamma: of the normalisation.
        epsilon: below it the squares of a filter do not count.
        centred: whether the filter's mean is subtracted.
    """

    theta: Tensor
    mask: Tensor | None
    gain: Tensor
    gamma: float
    epsilon: float
    centred: bool

    def weight(self) -> Tensor:
        """The weight that acts, (O, n)."""
        out = torch.empty_like(self.theta)
        _weight[(len(out),)](*_inputs(self.theta, self.mask), self.gain, out, *self._how())
        return out

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of theta, which overwrites ``grad`` (float32 (O, n), contiguous), and of the gain."""
        grad_gain = torch.empty_like(self.gain, memory_format=torch.contiguous_format)
        _gradients[(len(grad),)](grad, *_inputs(self.theta, self.mask), self.gain, grad_gain, *self._how())
        return grad, grad_gain

    def _how(self) -> tuple[object, ...]:
        columns = self.theta.shape[1]
        table = self.gain, self.gain  # none is read
        how = columns, int(self.centred), self.gamma
        return *how, *table, self.epsilon, True, self.mask is not None, BLOCKS[columns > BLOCKS[0]]


def _inputs(theta: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return theta, theta if mask is None else mask.view(torch.uint8)


class Block(NamedTuple):
    """Filters of one size that lie behind each other in a flat vector.

    Attributes:
        start: of the first one.
        filters: how many.
        size: weights of each.
        gains: where their gains lie, behind each other too.
        gamma: of their normalisation.
        centred: whether every filter's mean is subtracted.
    """

    start: int
    filters: int
    size: int
    gains: int
    gamma: float
    centred: bool


class FlatFilters:
    """Filters of many weights, which lie in one flat vector with their gains, in one launch each way.

    Args:
        blocks: those of each weight.
        epsilon: below it the squares of a filter do not count.
        device: where the vector is.
    """

    def __init__(self, blocks: Sequence[Block], epsilon: float, device: torch.device) -> None:
        rows = [
            (block.start + number * block.size, block.size, block.gains + number, int(block.centred))
            for block in blocks
            for number in range(block.filters)
        ]
        gammas = [block.gamma for block in blocks for _ in range(block.filters)]
        self._rows = torch.tensor(rows, dtype=torch.int64, device=device)
        self._gammas = torch.tensor(gammas, dtype=torch.float32, device=device)
        self._epsilon = epsilon

    def weights(self, values: Tensor, mask: Tensor | None, out: Tensor) -> None:
        """Writes the weights that act to ``out``, each to its place in the vector.

        Args:
            values: float32 (n,), the vector; 0 where a weight is inactive.
            mask: bool, its first elements, among them all weights; None: all are active.
            out: like ``values``, as much of it as there are weights.
        """
        _weight[(len(self._rows),)](*_inputs(values, mask), values, out, *self._how(mask))

    def gradients(self, grad: Tensor, values: Tensor, mask: Tensor | None) -> None:
        """Gradients of raw weights and of gains from those of the weights that act, which are overwritten.

        Args:
            grad: float32, each gradient at the place of what it belongs to.
            values: see :meth:`weights`.
            mask: see :meth:`weights`.
        """
        _gradients[(len(self._rows),)](grad, *_inputs(values, mask), values, grad, *self._how(mask))

    def _how(self, mask: Tensor | None) -> tuple[object, ...]:
        table = self._rows, self._gammas
        return 0, 0, 0.0, *table, self._epsilon, False, mask is not None, BLOCKS[1]
