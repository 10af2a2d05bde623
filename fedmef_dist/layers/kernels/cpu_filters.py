"""Passes over the filters of a weight on the CPU: compiled loops, by all threads that torch has, to the same bits.

Matrices are float32 (O, n), contiguous, a filter a row; a mask is bool (O, n), or None where all are active; what is
said of each filter is (O, 1). A filter's deviations are theta - mean on its active weights, 0 elsewhere.
"""

from collections.abc import Callable
from math import ceil

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.layers.kernels import filter_loops as loops
from fedmef_dist.layers.kernels.cpu import by_threads, threads_for


def measure(
    theta: Tensor, mask: Tensor | None, count: Tensor, gamma: float, epsilon: float, *, centre: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each filter's mean, inverse count, scale and squares, all (O, 1), as :class:`.filters.Filters` has them.

    Args:
        theta: see above.
        mask: see above.
        count: (O, 1), active weights.
        gamma: constant of the normalisation.
        epsilon: constant of the normalisation.
        centre: whether the mean is subtracted; else it is 0.
    """
    sums = theta.sum(1, keepdim=True)
    mean, inverse_count, scale, squares = found = sums.new_empty(4, *sums.shape).unbind()
    constants = np.float32(gamma), np.float32(epsilon), centre
    _by_rows(lambda *arrays: loops.measure(*arrays, *constants), theta, _active(mask, theta), sums, count, *found)
    return mean, inverse_count, scale, squares


def sum_products(grad: Tensor, theta: Tensor, mask: Tensor | None, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Of each filter the gradient's products with the deviations, and its active elements, summed: both (O, 1)."""
    along, total = torch.empty_like(mean), torch.empty_like(mean)
    _by_rows(loops.sum_products, grad, theta, _active(mask, theta), mean, along, total)
    return along, total


def weigh(theta: Tensor, mask: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor:
    """The deviations times each filter's factor, (O, n)."""
    weight = torch.empty_like(theta)
    _by_rows(loops.weigh, theta, _active(mask, theta), mean, factor, weight)
    return weight


def shift(
    grad: Tensor, theta: Tensor, mask: Tensor | None, mean: Tensor, shifts: Tensor, slopes: Tensor, factor: Tensor
) -> None:
    """Turns the gradient, in its place, into factor * (gradient - shift - slope * deviation)."""
    _by_rows(loops.shift, grad, theta, _active(mask, theta), mean, shifts, slopes, factor)


def sum_channels(pixels: Tensor) -> Tensor:
    """The sum of the rows of ``pixels``, float32 (P, C), added up one after the other by one thread: (C,)."""
    loops.prepare()
    sums = pixels.new_zeros(pixels.shape[1])
    loops.sum_channels(pixels.detach().numpy(), sums.numpy())
    return sums


def _active(mask: Tensor | None, theta: Tensor) -> Tensor:
    """The mask as numbers; one row where it is the same for all filters."""
    return torch.ones(1, theta.shape[1], dtype=torch.uint8) if mask is None else mask.bool().view(torch.uint8)


def _by_rows(loop: Callable[..., None], matrix: Tensor, *others: Tensor) -> None:
    """Calls the loop on about equal parts of the rows, one a thread, in eights."""
    loops.prepare()
    arrays, threads = [tensor.detach().numpy() for tensor in (matrix, *others)], threads_for(matrix.numel())
    if threads == 1:
        loop(*arrays)
        return
    rows = len(matrix)
    size = 8 * ceil(rows / (8 * threads))

    def work(some: slice) -> None:
        loop(*(array[some] if len(array) == rows else array for array in arrays))

    by_threads(work, [slice(start, start + size) for start in range(0, rows, size)])
