"""Kernels in torch's operations, for tensors on any device. The functions are those of ``cpu.py``."""

import torch
from torch import Tensor

from fedmef_dist.layers import bits


def _magnitude(row: Tensor) -> Tensor:
    return row & torch.iinfo(row.dtype).max


def count_from(row: Tensor, threshold: int) -> int:
    """As in ``cpu.py``."""
    return int((_magnitude(row) >= threshold).count_nonzero())


def find_threshold(row: Tensor, count: int) -> tuple[int, int]:
    """As in ``cpu.py``."""
    magnitude = _magnitude(row)
    threshold = int(magnitude.kthvalue(row.numel() - count + 1).values)
    surplus = count_from(row, threshold) - count
    if not surplus:
        return threshold, row.numel()
    tied = (magnitude == threshold).nonzero().flatten()
    return threshold, int(tied[tied.numel() - surplus - 1]) + 1


def pack(row: Tensor, threshold: int, end: int, bitmap: Tensor, values: Tensor) -> None:
    """As in ``cpu.py``."""
    magnitude = _magnitude(row)
    chosen = magnitude > threshold
    chosen[:end] |= magnitude[:end] == threshold
    bitmap.copy_(bits.pack(chosen))
    values.copy_(row[chosen])


def unpack(bitmap: Tensor, values: Tensor, row: Tensor) -> None:
    """As in ``cpu.py``."""
    row.zero_().masked_scatter_(bits.unpack(bitmap, row.numel()), values)


def pack_between(row: Tensor, high: int) -> Tensor:
    """As in ``cpu.py``."""
    return bits.pack((row > 0) & (row < high))


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """As in ``cpu.py``."""
    return row.masked_fill(~bits.unpack(bitmap, row.numel()), 0)
