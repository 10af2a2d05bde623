"""Kernels for tensors on a GPU, written in Triton; the functions are those of ``portable.py``.

Matrices have to be contiguous. A threshold is found in histograms of 8 bits, the high ones first. The digits found so
far stay in the histograms: every block of the next pass works them out for itself, which is cheaper than a launch. All
counts are integers, so it does not matter who adds first. A block that packs or unpacks adds up how many values the
blocks before it have.
"""

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


@triton.jit(do_not_specialize=["passes", "wanted", "is_ranked"])
def _settle(histograms, passes, wanted, ranks, is_ranked, thresholds, ties):
    threshold, tied = _digits(histograms, passes, wanted, ranks, is_ranked)
    tl.store(thresholds + tl.program_id(1), threshold)
    tl.store(ties + tl.program_id(1), tl.where(threshold > 0, tied, 0).to(tl.int64))


@triton.jit
def _count_from(rows, n, thresholds, counts, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    magnitude = tl.load(rows + _row(n) + places, mask=inside, other=0) & UNSIGNED
    reached = inside & (magnitude >= tl.load(thresholds + tl.program_id(1)))
    tl.atomic_add(counts + tl.program_id(1), tl.sum(reached.to(tl.int64), 0), sem="relaxed")


@triton.jit
def _count_parts(rows, n, thresholds, above, tied, UNSIGNED: tl.constexpr, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    magnitude = tl.load(rows + _row(n) + places, mask=inside, other=0) & UNSIGNED
    threshold = tl.load(thresholds + tl.program_id(1))
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
    tl.store(bitmap + _row(tl.cdiv(n, 8)) + places, tl.sum(bits, 1).to(tl.uint8), mask=places < tl.cdiv(n, 8))


@triton.jit
def _load_bits(bitmap, n, places, inside):
    byte = tl.load(bitmap + _row(tl.cdiv(n, 8)) + places // 8, mask=inside, other=0).to(tl.int32)
    return (byte >> (places % 8).to(tl.int32)) & 1


@triton.jit
def _pack(
    rows, n, thresholds, ties, above, tied, bitmap, values, capacity,
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
    _store_bits(chosen, bitmap, n, BLOCK)
    place = above_before + tl.minimum(tied_before, most_tied) + tl.cumsum(chosen.to(tl.int32), 0) - 1
    tl.store(values + _row(capacity) + place, pattern, mask=chosen & (place < capacity))
    # What is behind the last value becomes 0; the blocks share it, each as much of it as a block has places.
    behind = all_above + tl.minimum(all_tied, most_tied) + places
    tl.store(values + _row(capacity) + behind, tl.zeros_like(pattern), mask=behind < capacity)


@triton.jit
def _count_bits(bitmap, n, counts, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    place = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(counts + place, tl.sum(_load_bits(bitmap, n, places, inside), 0))


@triton.jit
def _unpack(bitmap, values, capacity, n, counts, rows, BLOCK: tl.constexpr):
    places, inside = _places(n, BLOCK)
    flags = _load_bits(bitmap, n, places, inside)
    before, _ = _sum_of_blocks(counts)
    place = before + tl.cumsum(flags, 0) - 1
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
    flags = _load_bits(bitmap, n, places, inside)
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


def find_threshold(rows: Tensor, wanted: int | Tensor) -> tuple[Tensor, Tensor]:
    """As in ``portable.py``."""
    passes, (blocks, count) = rows.element_size(), _grid(rows)
    histograms = torch.zeros(passes, count, DIGITS.value, dtype=torch.int32, device=rows.device)
    target = (0, wanted, 1) if isinstance(wanted, Tensor) else (wanted, histograms, 0)
    grid = min(blocks, max(PROGRAMS // count, 1)), count
    for number in range(passes):
        shift = 8 * (passes - 1 - number)
        _histogram[grid](
            rows, rows.shape[1], histograms, number, shift, *target, _unsigned(rows), BLOCK, num_warps=WARPS
        )
    threshold, ties = torch.empty(2, count, dtype=torch.int64, device=rows.device)
    _settle[(1, count)](histograms, passes, *target, threshold, ties)
    return threshold, ties


def pack(rows: Tensor, threshold: Tensor, ties: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """As in ``portable.py``."""
    (blocks, count), columns = _grid(rows), rows.shape[1]
    above, tied = torch.empty(2, count, blocks, dtype=torch.int32, device=rows.device)
    bitmap = torch.empty(count, (columns + 7) // 8, dtype=torch.uint8, device=rows.device)
    values = rows.new_empty(count, capacity)
    unsigned = _unsigned(rows)
    _count_parts[blocks, count](rows, columns, threshold, above, tied, unsigned, BLOCK, num_warps=WARPS)
    _pack[blocks, count](
        rows, columns, threshold, ties, above, tied, bitmap, values, capacity, unsigned, BLOCK, num_warps=WARPS
    )
    return bitmap, values


def unpack(bitmap: Tensor, values: Tensor, columns: int) -> Tensor:
    """As in ``portable.py``."""
    rows = values.new_empty(values.shape[0], columns)
    blocks, count = _grid(rows)
    counts = torch.empty(count, blocks, dtype=torch.int32, device=rows.device)
    _count_bits[blocks, count](bitmap, columns, counts, BLOCK, num_warps=WARPS)
    _unpack[blocks, count](bitmap, values, values.shape[1], columns, counts, rows, BLOCK, num_warps=WARPS)
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
