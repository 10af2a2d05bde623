"""Kernels for tensors on a GPU, written in Triton: bitmaps and values without intermediate tensors.

Packing and unpacking take two passes, since a block has to know how many values the blocks before it have. The
functions are those of ``cpu.py``; finding a threshold is left to torch's operations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fedmef_dist.layers.kernels.portable import count_from, find_threshold

__all__ = ["count_from", "find_threshold", "pack", "pack_between", "select", "unpack"]

BLOCK = 1024


@triton.jit
def _positions(n, BLOCK: tl.constexpr):
    positions = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return positions, positions < n


@triton.jit
def _chosen(row, n, threshold, end, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    positions, inside = _positions(n, BLOCK)
    pattern = tl.load(row + positions, mask=inside, other=0)
    magnitude = pattern & UNSIGNED
    chosen = (magnitude > threshold) | ((magnitude == threshold) & (positions < end))
    return pattern, chosen & inside


@triton.jit
def _store_bits(flags, bitmap, n, BLOCK: tl.constexpr):
    bits = tl.reshape(flags.to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
    places = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(bitmap + places, tl.sum(bits, 1).to(tl.uint8), mask=places < tl.cdiv(n, 8))


@triton.jit
def _load_bits(bitmap, positions, inside):
    return (tl.load(bitmap + positions // 8, mask=inside, other=0).to(tl.int32) >> (positions % 8).to(tl.int32)) & 1


@triton.jit(do_not_specialize=["threshold", "end"])
def _mark(row, n, threshold, end, bitmap, counts, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    _, chosen = _chosen(row, n, threshold, end, UNSIGNED, BLOCK)
    _store_bits(chosen, bitmap, n, BLOCK)
    tl.store(counts + tl.program_id(0), tl.sum(chosen.to(tl.int32), 0))


@triton.jit(do_not_specialize=["threshold", "end"])
def _compact(row, n, threshold, end, stops, values, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    pattern, chosen = _chosen(row, n, threshold, end, UNSIGNED, BLOCK)
    rank = tl.cumsum(chosen.to(tl.int32), 0)
    start = tl.load(stops + tl.program_id(0)) - tl.sum(chosen.to(tl.int32), 0)
    tl.store(values + start + rank - 1, pattern, mask=chosen)


@triton.jit
def _count(bitmap, n, counts, BLOCK: tl.constexpr):
    positions, inside = _positions(n, BLOCK)
    tl.store(counts + tl.program_id(0), tl.sum(_load_bits(bitmap, positions, inside), 0))


@triton.jit
def _expand(bitmap, values, n, stops, row, BLOCK: tl.constexpr):
    positions, inside = _positions(n, BLOCK)
    flags = _load_bits(bitmap, positions, inside)
    start = tl.load(stops + tl.program_id(0)) - tl.sum(flags, 0)
    pattern = tl.load(values + start + tl.cumsum(flags, 0) - 1, mask=flags != 0, other=0)
    tl.store(row + positions, pattern, mask=inside)


@triton.jit
def _mark_between(row, n, high, bitmap, BLOCK: tl.constexpr):
    positions, inside = _positions(n, BLOCK)
    pattern = tl.load(row + positions, mask=inside, other=0)
    _store_bits((pattern > 0) & (pattern < high), bitmap, n, BLOCK)


@triton.jit
def _select(bitmap, row, n, out, BLOCK: tl.constexpr):
    positions, inside = _positions(n, BLOCK)
    flags = _load_bits(bitmap, positions, inside)
    pattern = tl.load(row + positions, mask=inside & (flags != 0), other=0)
    tl.store(out + positions, pattern, mask=inside)


def _blocks(row: Tensor) -> int:
    return triton.cdiv(row.numel(), BLOCK)


def pack(row: Tensor, threshold: int, end: int, bitmap: Tensor, values: Tensor) -> None:
    """As in ``cpu.py``."""
    unsigned = torch.iinfo(row.dtype).max
    counts = torch.empty(_blocks(row), dtype=torch.int64, device=row.device)
    _mark[counts.shape](row, row.numel(), threshold, end, bitmap, counts, unsigned, BLOCK)
    _compact[counts.shape](row, row.numel(), threshold, end, counts.cumsum(0), values, unsigned, BLOCK)


def unpack(bitmap: Tensor, values: Tensor, row: Tensor) -> None:
    """As in ``cpu.py``."""
    counts = torch.empty(_blocks(row), dtype=torch.int64, device=row.device)
    _count[counts.shape](bitmap, row.numel(), counts, BLOCK)
    _expand[counts.shape](bitmap, values, row.numel(), counts.cumsum(0), row, BLOCK)


def pack_between(row: Tensor, high: int) -> Tensor:
    """As in ``cpu.py``."""
    bitmap = torch.empty((row.numel() + 7) // 8, dtype=torch.uint8, device=row.device)
    _mark_between[(_blocks(row),)](row, row.numel(), high, bitmap, BLOCK)
    return bitmap


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """As in ``cpu.py``."""
    out = torch.empty_like(row)
    _select[(_blocks(row),)](bitmap, row, row.numel(), out, BLOCK)
    return out
