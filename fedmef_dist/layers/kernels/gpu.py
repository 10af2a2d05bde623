"""Kernels for tensors on a GPU, written in Triton; the functions are those of ``portable.py``.

Matrices have to be contiguous. A threshold is found in histograms of 8 bits, the high ones first. The digits found so
far stay in the histograms: every block of the next pass works them out for itself, which is cheaper than a launch. All
counts are integers, so it does not matter who adds first. A block that packs adds up how many values the blocks before
it have, and leaves that for the one that unpacks: here a row's bitmap ends with these counts, an int32 for each block.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 8
PROGRAMS = 1024
"""Blocks at most that look at a matrix for one histogram; each of them goes on where all have been."""
DIGITS = tl.constexpr(256)
STEP = tl.constexpr(1024)
"""So many blocks' counts are added up at once."""


@triton.jit
def _places(n, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return places, places < n


@triton.jit
def _row(n):
    return tl.program_id(1).to(tl.int64) * n


@triton.jit
def _next_digit(histogram, wanted):
    """The digit at which ``wanted`` elements are counted from above, and how many of them have just this digit."""
    digits = tl.arange(0, DIGITS)
    counts = tl.load(histogram + digits)
    above = tl.sum(counts, 0) - tl.cumsum(counts, 0)
    here = (above < wanted) & (above + counts >= wanted)
    return tl.sum(tl.where(here, digits, 0), 0), wanted - tl.sum(tl.where(here, above, 0), 0)


@triton.jit
def _digits(histograms, passes, wanted, ranks, is_ranked):
    """The first digits of a row's threshold as one number, int64, and how many elements with them are wanted."""
    row, rows = tl.program_id(1), tl.num_programs(1)
    if is_ranked:
        wanted = tl.load(ranks + row).to(tl.int32)
    prefix = tl.zeros((), tl.int64)
    number = 0
    while number < passes:
        digit, wanted = _next_digit(histograms + (number * rows + row) * DIGITS, wanted)
        prefix = prefix * DIGITS + digit
        number += 1
    return prefix, wanted


@triton.jit(do_not_specialize=["number", "shift", "wanted", "is_ranked"])
def _histogram(
    rows, n, histograms, number, shift, wanted, ranks, is_ranked, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    prefix, _ = _digits(histograms, number, wanted, ranks, is_ranked)
    bins = tl.arange(0, DIGITS)
    counts = tl.zeros([DIGITS], tl.int32)
    block = tl.program_id(0)
    while block < tl.cdiv(n, BLOCK):
        places = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = places < n
        digits = (tl.load(rows + _row(n) + places, mask=inside, other=0) & UNSIGNED).to(tl.int64) >> shift
        fits = inside & ((digits >> 8) == prefix)  # all of them in the first pass, which has the sign alone above it
        left_out = tl.sum(1 - fits.to(tl.int32), 0)
        digits = tl.where(fits, digits & 255, 0).to(tl.int32)
        counts += tl.histogram(digits, DIGITS) - tl.where(bins == 0, left_out, 0)
        block += tl.num_programs(0)
    place = (number * tl.num_programs(1) + tl.program_id(1)) * DIGITS + bins
    tl.atomic_add(histograms + place, counts, mask=counts != 0, sem="relaxed")


@triton.jit
def _store_cut(threshold, tied, thresholds, ties):
    tl.store(thresholds + tl.program_id(1), threshold)
    tl.store(ties + tl.program_id(1), tl.where(threshold > 0, tied, 0).to(tl.int64))


@triton.jit(do_not_specialize=["passes", "wanted", "is_ranked"])
def _settle(histograms, passes, wanted, ranks, is_ranked, thresholds, ties):
    threshold, tied = _digits(histograms, passes, wanted, ranks, is_ranked)
    _store_cut(threshold, tied, thresholds, ties)


@triton.jit
def _count_from(rows, n, thresholds, counts, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    magnitude = tl.load(rows + _row(n) + places, mask=inside, other=0) & UNSIGNED
    reached = inside & (magnitude >= tl.load(thresholds + tl.program_id(1)))
    tl.atomic_add(counts + tl.program_id(1), tl.sum(reached.to(tl.int64), 0), sem="relaxed")


@triton.jit(do_not_specialize=["passes", "wanted"])
def _count_parts(
    rows, n, histograms, passes, wanted, thresholds, ties, above, tied,
    IS_SETTLED: tl.constexpr, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    places, inside = _places(n, BLOCK)
    magnitude = tl.load(rows + _row(n) + places, mask=inside, other=0) & UNSIGNED
    if IS_SETTLED:
        threshold = tl.load(thresholds + tl.program_id(1))
    else:
        threshold, most_tied = _digits(histograms, passes, wanted, histograms, 0)
        if tl.program_id(0) == 0:
            _store_cut(threshold, most_tied, thresholds, ties)
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(above + place, tl.sum((inside & (magnitude > threshold)).to(tl.int32), 0))
    tl.store(tied + place, tl.sum((inside & (magnitude == threshold)).to(tl.int32), 0))


@triton.jit
def _sum_of_blocks(counts):
    """The sums of a row's counts over the blocks before this one, and over all."""
    blocks = tl.num_programs(0)
    before = tl.zeros([STEP], tl.int32)
    total = tl.zeros([STEP], tl.int32)
    start = 0
    while start < blocks:
        block = start + tl.arange(0, STEP)
        part = tl.load(counts + tl.program_id(1) * blocks + block, mask=block < blocks, other=0)
        before += tl.where(block < tl.program_id(0), part, 0)
        total += part
        start += STEP
    return tl.sum(before, 0), tl.sum(total, 0)


@triton.jit
def _store_bits(flags, bitmap, n, BLOCK: tl.constexpr):
    bits = tl.reshape(flags.to(tl.int32), (BLOCK // 8, 8)) << tl.arange(0, 8)[None, :]
    places = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    tl.store(bitmap + places, tl.sum(bits, 1).to(tl.uint8), mask=places < tl.cdiv(n, 8))


@triton.jit
def _counted_row(n):
    """Where a row's bitmap with the blocks' counts begins, and where its counts do, in units of 4 bytes."""
    start = _row(tl.cdiv(n, 32) + tl.num_programs(0))
    return start, start + tl.cdiv(n, 32)


@triton.jit
def _load_bits(bitmap, places, inside):
    byte = tl.load(bitmap + places // 8, mask=inside, other=0).to(tl.int32)
    return (byte >> (places % 8).to(tl.int32)) & 1


@triton.jit
def _pack(
    rows, n, thresholds, ties, above, tied, bitmap, counts, values, capacity,
    UNSIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    places, inside = _places(n, BLOCK)
    pattern = tl.load(rows + _row(n) + places, mask=inside, other=0)
    magnitude, threshold = pattern & UNSIGNED, tl.load(thresholds + tl.program_id(1))
    most_tied = tl.load(ties + tl.program_id(1))
    above_before, all_above = _sum_of_blocks(above)
    tied_before, all_tied = _sum_of_blocks(tied)
    is_tied = inside & (magnitude == threshold)
    belongs = tied_before + tl.cumsum(is_tied.to(tl.int32), 0) <= most_tied
    chosen = (inside & (magnitude > threshold)) | (is_tied & belongs)
    own_bits, own_counts = _counted_row(n)
    before = (above_before + tl.minimum(tied_before, most_tied)).to(tl.int32)
    _store_bits(chosen, bitmap + 4 * own_bits, n, BLOCK)
    tl.store(counts + own_counts + tl.program_id(0), before)
    place = before + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(values + _row(capacity) + place, pattern, mask=chosen & (place < capacity))
    # What is behind the last value becomes 0; the blocks share it, each as much of it as a block has places.
    behind = all_above + tl.minimum(all_tied, most_tied) + places
    tl.store(values + _row(capacity) + behind, tl.zeros_like(pattern), mask=behind < capacity)


@triton.jit
def _unpack(bitmap, counts, values, capacity, n, rows, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    own_bits, own_counts = _counted_row(n)
    flags = _load_bits(bitmap + 4 * own_bits, places, inside)
    place = tl.load(counts + own_counts + tl.program_id(0)) + tl.cumsum(flags, 0) - 1
    taken = (flags != 0) & (place < capacity)
    pattern = tl.load(values + _row(capacity) + place, mask=taken, other=0)
    tl.store(rows + _row(n) + places, pattern, mask=inside)


@triton.jit(do_not_specialize=["high"])
def _pack_between(row, n, high, bitmap, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    pattern = tl.load(row + places, mask=inside, other=0)
    _store_bits((pattern > 0) & (pattern < high), bitmap, n, BLOCK)


@triton.jit(do_not_specialize=["high", "infinity"])
def _clip(row, n, high, infinity, out, bitmap, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    pattern = tl.load(row + places, mask=inside, other=0)
    _store_bits((pattern > 0) & (pattern < high), bitmap, n, BLOCK)
    clipped = tl.where(pattern < 0, 0, tl.where(pattern < high, pattern, high))
    is_nan = (pattern & UNSIGNED) > infinity
    tl.store(out + places, tl.where(is_nan, pattern, clipped.to(pattern.dtype)), mask=inside)


@triton.jit
def _select(bitmap, row, n, out, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    flags = _load_bits(bitmap, places, inside)
    pattern = tl.load(row + places, mask=inside & (flags != 0), other=0)
    tl.store(out + places, pattern, mask=inside)


def _unsigned(rows: Tensor) -> int:
    return torch.iinfo(rows.dtype).max


def _grid(rows: Tensor) -> tuple[int, int]:
    return triton.cdiv(rows.shape[-1], BLOCK), rows.shape[0] if rows.dim() > 1 else 1


def count_from(rows: Tensor, threshold: Tensor) -> Tensor:
    """As in ``portable.py``."""
    counts = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    _count_from[_grid(rows)](rows, rows.shape[1], threshold, counts, _unsigned(rows), BLOCK, num_warps=WARPS)
    return counts


def _histograms(rows: Tensor, *target: Any) -> Tensor:
    """Of each row's patterns that begin with its threshold's first digits: int32 (digits, R, 256)."""
    passes, (blocks, count) = rows.element_size(), _grid(rows)
    histograms = torch.zeros(passes, count, DIGITS.value, dtype=torch.int32, device=rows.device)
    grid = min(blocks, max(PROGRAMS // count, 1)), count
    for number in range(passes):
        shift = 8 * (passes - 1 - number)
        _histogram[grid](
            rows, rows.shape[1], histograms, number, shift, *target, _unsigned(rows), BLOCK, num_warps=WARPS
        )
    return histograms


def find_threshold(rows: Tensor, wanted: int | Tensor) -> tuple[Tensor, Tensor]:
    """As in ``portable.py``."""
    target = (0, wanted, 1) if isinstance(wanted, Tensor) else (wanted, rows, 0)
    histograms = _histograms(rows, *target)
    threshold, ties = torch.empty(2, len(rows), dtype=torch.int64, device=rows.device)
    _settle[(1, len(rows))](histograms, len(histograms), *target, threshold, ties)
    return threshold, ties


def pack(rows: Tensor, threshold: Tensor, ties: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """As in ``portable.py``, but for the counts behind the bits."""
    return _pack_rows(rows, (threshold, ties), (rows, 0, 0), True, capacity)


def pack_largest(rows: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """As in ``portable.py``, but for the counts behind the bits."""
    cut = torch.empty(2, len(rows), dtype=torch.int64, device=rows.device)
    histograms = _histograms(rows, wanted, rows, 0)
    return _pack_rows(rows, cut.unbind(), (histograms, len(histograms), wanted), False, wanted)


def _pack_rows(
    rows: Tensor, cut: tuple[Tensor, ...], digits: tuple[Tensor, int, int], is_settled: bool, capacity: int
) -> tuple[Tensor, Tensor]:
    """Packs by thresholds and numbers of ties, which come out of the ``digits`` where they are not settled yet."""
    (blocks, count), columns, unsigned = _grid(rows), rows.shape[1], _unsigned(rows)
    above, tied = torch.empty(2, count, blocks, dtype=torch.int32, device=rows.device)
    words = torch.empty(count, triton.cdiv(columns, 32) + blocks, dtype=torch.int32, device=rows.device)
    values, bitmap = rows.new_empty(count, capacity), words.view(torch.uint8)
    _count_parts[blocks, count](rows, columns, *digits, *cut, above, tied, is_settled, unsigned, BLOCK, num_warps=WARPS)
    _pack[blocks, count](
        rows, columns, *cut, above, tied, bitmap, words, values, capacity, unsigned, BLOCK, num_warps=WARPS
    )
    return bitmap, values


def unpack(bitmap: Tensor, values: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack`: like ``values`` (R, columns), with 0 where nothing was taken."""
    rows = values.new_empty(values.shape[0], columns)
    words = bitmap.view(torch.int32)
    _unpack[_grid(rows)](bitmap, words, values, values.shape[1], columns, rows, BLOCK, num_warps=WARPS)
    return rows


def pack_between(row: Tensor, high: int) -> Tensor:
    """As in ``portable.py``."""
    row = row.contiguous()
    bitmap = torch.empty((row.numel() + 7) // 8, dtype=torch.uint8, device=row.device)
    _pack_between[_grid(row)](row, row.numel(), high, bitmap, BLOCK, num_warps=WARPS)
    return bitmap


def clip(row: Tensor, high: int, infinity: int, out: Tensor) -> Tensor:
    """Writes min(max(x, 0), ceiling) to ``out``, NaN as it is, and returns what :func:`pack_between` does.

    Args:
        row: integer (n,), patterns.
        high: pattern of the ceiling, which is positive; the largest integer where there is none.
        infinity: its pattern.
        out: like ``row``; may be the same.
    """
    bitmap = torch.empty((row.numel() + 7) // 8, dtype=torch.uint8, device=row.device)
    _clip[_grid(row)](row, row.numel(), high, infinity, out, bitmap, _unsigned(row), BLOCK, num_warps=WARPS)
    return bitmap


def select(bitmap: Tensor, row: Tensor) -> Tensor:
    """As in ``portable.py``."""
    row = row.contiguous()
    out = torch.empty_like(row)
    _select[_grid(row)](bitmap, row, row.numel(), out, BLOCK, num_warps=WARPS)
    return out
