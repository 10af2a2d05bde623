"""Kernels in torch's operations, for tensors on any device; none of them lets the host wait."""

import torch
from torch import Tensor

from fedmef_dist.layers import bits


def _magnitude(rows: Tensor) -> Tensor:
    return rows & torch.iinfo(rows.dtype).max


def count_from(rows: Tensor, threshold: Tensor) -> Tensor:
    """How many elements of each row have a magnitude of its threshold and more.

    Args:
        rows: integer (R, n), patterns.
        threshold: int64 (R,).

    Returns:
        int64 (R,).
    """
    return (_magnitude(rows) >= threshold.unsqueeze(1)).count_nonzero(1)


def find_threshold(rows: Tensor, wanted: int | Tensor) -> tuple[Tensor, Tensor]:
    """What separates the elements of largest magnitude in each row; zeros are never among them.

    Args:
        rows: integer (R, n), patterns.
        wanted: how many, between 1 and n; int64 (R,) where rows differ.

    Returns:
        Both int64 (R,): the threshold's pattern without sign, and how many elements of just this magnitude belong to
        them, the first ones.
    """
    magnitude = _magnitude(rows)
    last = wanted - 1 if isinstance(wanted, Tensor) else torch.full_like(rows[:, 0], wanted - 1, dtype=torch.int64)
    threshold = magnitude.sort(1, descending=True).values.gather(1, last.unsqueeze(1))
    ties = last + 1 - (magnitude > threshold).count_nonzero(1)
    threshold = threshold.flatten().long()
    return threshold, torch.where(threshold > 0, ties, 0)


def pack(rows: Tensor, threshold: Tensor, ties: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Packs the elements that :func:`find_threshold` separates.

    Args:
        rows: integer (R, n), patterns.
        threshold: int64 (R,).
        ties: int64 (R,).
        capacity: at least 1; values beyond it are lost.

    Returns:
        Bitmap, uint8 (R, ceil(n / 8)), and the values in order, like ``rows`` (R, capacity); behind the last one 0.
    """
    magnitude, threshold = _magnitude(rows), threshold.unsqueeze(1)
    tied = magnitude == threshold
    chosen = (magnitude > threshold) | (tied & (_ranks(tied) <= ties.unsqueeze(1)))
    place = torch.where(chosen, _ranks(chosen) - 1, capacity).clamp_(max=capacity).long()
    values = rows.new_zeros(rows.shape[0], capacity + 1).scatter_(1, place, rows)
    return bits.pack(chosen), values[:, :capacity].clone(memory_format=torch.contiguous_format)


def pack_largest(rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Packs the ``wanted`` elements of largest magnitude of each row: :func:`find_threshold` and :func:`pack`."""
    return pack(rows, *find_threshold(rows, wanted), wanted)


def unpack(bitmap: Tensor, values: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack`: like ``values`` (R, columns), with 0 where nothing was taken."""
    flags = bits.unpack(bitmap, columns)
    place = (_ranks(flags) - 1).clamp_(0, values.shape[1] - 1).long()
    return torch.where(flags, values.gather(1, place), 0)


def _ranks(flags: Tensor) -> Tensor:
    """The number of set flags up to each place of its row, int32."""
    return flags.cumsum(1, dtype=torch.int32)


def pack_between(row: Tensor, high: int) -> Tensor:
    """Bitmap, uint8 (ceil(n / 8),), of the elements of ``row``, patterns (n,), above 0 and below ``high``."""
    return bits.pack((row > 0) & (row < high))


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """The elements of ``row``, patterns (n,), whose bit is set, 0 in the place of the others."""
    return row.masked_fill(~bits.unpack(bitmap, row.numel()), 0)
