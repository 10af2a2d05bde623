"""Kernels for tensors on the CPU: one compiled pass each, by all threads that torch has, to the same bits."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import accumulate
from math import ceil
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.layers.kernels import packing_loops, threshold_loops

_T = TypeVar("_T")
_WORTH_A_THREAD = 1 << 17  # elements


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "packing")


def by_threads(work: Callable[[slice], _T], pieces: list[slice]) -> list[_T]:
    """``work`` on every piece, each by a thread."""
    return [work(pieces[0])] if len(pieces) == 1 else list(_pool(len(pieces)).map(work, pieces))


def threads_for(elements: int) -> int:
    """How many threads to share so many elements out to; one where there are few."""
    return min(torch.get_num_threads(), elements // _WORTH_A_THREAD) or 1


def _pieces(elements: int) -> list[slice]:
    """About equal ones, one a thread, which begin at a byte of the bitmap."""
    size = 8 * ceil(elements / (8 * threads_for(elements)))
    return [slice(start, min(start + size, elements)) for start in range(0, elements, size)] or [slice(0, 0)]


def _bytes(piece: slice) -> slice:
    return slice(piece.start // 8, ceil(piece.stop / 8))


def _array(row: Tensor) -> np.ndarray:
    array = row.numpy()
    threshold_loops.prepare(array.dtype)
    packing_loops.prepare(array.dtype)
    return array


def count_from(row: Tensor, threshold: int) -> int:
    """Number of elements of ``row``, patterns (n,), of magnitude ``threshold`` and more."""
    array = _array(row)
    return sum(by_threads(lambda piece: int(threshold_loops.count_from(array[piece], threshold)), _pieces(array.size)))


def find_threshold(row: Tensor, count: int) -> tuple[int, int]:
    """What separates the ``count`` elements of largest magnitude.

    Args:
        row: integer (n,), patterns.
        count: between 1 and n.

    Returns:
        The threshold's pattern without sign, and an end: elements of just this magnitude belong to them before that
        position only.
    """
    threshold, end = threshold_loops.find_threshold(_array(row), count)
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
    array, flags, packed = _array(row), bitmap.numpy(), values.numpy()
    pieces = _pieces(array.size)

    def taken(piece: slice) -> int:
        middle = min(max(end, piece.start), piece.stop)
        before, behind = array[piece.start : middle], array[middle : piece.stop]
        above = threshold < torch.iinfo(row.dtype).max and threshold_loops.count_from(behind, threshold + 1)
        return int(threshold_loops.count_from(before, threshold)) + int(above)

    def work(piece: slice) -> None:
        own_end = min(max(end - piece.start, 0), piece.stop - piece.start)
        packing_loops.pack_row(array[piece], threshold, own_end, flags[_bytes(piece)], packed[places[piece.start]])

    places = _places(pieces, [packed.size] if len(pieces) == 1 else by_threads(taken, pieces))
    by_threads(work, pieces)


def _places(pieces: list[slice], counts: list[int]) -> dict[int, slice]:
    """Where the values of each piece lie, by where it begins."""
    stops = list(accumulate(counts))
    return {piece.start: slice(stop - count, stop) for piece, count, stop in zip(pieces, counts, stops, strict=True)}


def unpack(bitmap: Tensor, values: Tensor, row: Tensor) -> None:
    """The inverse of :func:`pack`: fills ``row`` (n,), with 0 where nothing was taken."""
    array, flags, packed = row.numpy(), bitmap.numpy(), _array(values)
    pieces = _pieces(array.size)

    def work(piece: slice) -> None:
        packing_loops.unpack_row(flags[_bytes(piece)], packed[places[piece.start]], array[piece])

    counts = [packed.size]
    if len(pieces) > 1:
        counts = by_threads(lambda piece: int(packing_loops.count_bits(flags[_bytes(piece)])), pieces)
    places = _places(pieces, counts)
    by_threads(work, pieces)


def pack_between(row: Tensor, high: int) -> Tensor:
    """Bitmap, uint8 (ceil(n / 8),), of the elements of ``row``, patterns (n,), above 0 and below ``high``."""
    bitmap = torch.empty((row.numel() + 7) // 8, dtype=torch.uint8)
    array, flags = _array(row), bitmap.numpy()
    by_threads(lambda piece: packing_loops.pack_between(array[piece], high, flags[_bytes(piece)]), _pieces(array.size))
    return bitmap


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """The elements of ``row``, patterns (n,), whose bit is set, 0 in the place of the others."""
    out = torch.empty_like(row)
    array, flags, selected = _array(row), bitmap.numpy(), out.numpy()
    by_threads(
        lambda piece: packing_loops.select(flags[_bytes(piece)], array[piece], selected[piece]), _pieces(array.size)
    )
    return out
