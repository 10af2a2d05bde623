"""Kernels for tensors on the CPU: one compiled pass each."""

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.layers.kernels import loops


def _array(row: Tensor) -> np.ndarray:
    array = row.numpy()
    loops.prepare(array.dtype)
    return array


def count_from(row: Tensor, threshold: int) -> int:
    """Number of elements of ``row``, patterns (n,), of magnitude ``threshold`` and more."""
    return int(loops.count_from(_array(row), threshold))


def find_threshold(row: Tensor, count: int) -> tuple[int, int]:
    """What separates the ``count`` elements of largest magnitude.

    Args:
        row: integer (n,), patterns.
        count: between 1 and n.

    Returns:
        The threshold's pattern without sign, and an end: elements of just this magnitude belong to them before that
        position only.
    """
    threshold, end = loops.find_threshold(_array(row), count)
    return int(threshold), int(end)


def pack(row: Tensor, threshold: int, end: int, bitmap: Tensor, values: Tensor) -> None:
    """Packs the elements that :func:`find_threshold` separates.

    Args:
        row: integer (n,), patterns.
        threshold: pattern without sign.
        end: elements of just this magnitude are taken before that position only.
        bitmap: uint8 (ceil(n / 8),), zeros; gets the bits.
        values: like ``row``, one element for each that is taken; gets them in order.
    """
    loops.pack_row(_array(row), threshold, end, bitmap.numpy(), values.numpy())


def unpack(bitmap: Tensor, values: Tensor, row: Tensor) -> None:
    """The inverse of :func:`pack`: fills ``row`` (n,), with 0 where nothing was taken."""
    loops.unpack_row(bitmap.numpy(), _array(values), row.numpy())


def pack_between(row: Tensor, high: int) -> Tensor:
    """Bitmap, uint8 (ceil(n / 8),), of the elements of ``row``, patterns (n,), above 0 and below ``high``."""
    bitmap = torch.empty((row.numel() + 7) // 8, dtype=torch.uint8)
    loops.pack_between(_array(row), high, bitmap.numpy())
    return bitmap


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """The elements of ``row``, patterns (n,), whose bit is set, 0 in the place of the others."""
    out = torch.empty_like(row)
    loops.select(bitmap.numpy(), _array(row), out.numpy())
    return out
