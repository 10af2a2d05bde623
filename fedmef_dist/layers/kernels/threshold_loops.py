"""Compiled loops on the CPU that find the elements of largest magnitude in few passes over a tensor's memory.

They work on bit patterns, floats seen as integers of their size: without its sign a float's pattern is an integer in
the order of magnitude, NaN above infinity.
"""

from functools import cache

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache

_BLOCK = 128
_ENOUGH = 64  # elements of a sample, to say what share of the row is below one of them


@cache
def prepare(kind: np.dtype) -> None:
    """Compiles the loops for integers of this ``kind``, or loads what an earlier process has compiled."""
    fill_cache(count_from, kind.name, lambda: _call_all(kind))


def _call_all(kind: np.dtype) -> None:
    row = np.ones(9, kind)
    count_from(row, 1)
    find_threshold(row, 1)


@compiled
def count_from(row: np.ndarray, threshold: int) -> int:
    """Number of elements of ``row``, integer (n,), whose magnitude is at least the pattern ``threshold``."""
    # In the row's own type, so that the compiler fills its vectors.
    unsigned, low = row.dtype.type((1 << (8 * row.itemsize - 1)) - 1), row.dtype.type(threshold)
    count = 0
    for i in range(row.size):
        count += (row[i] & unsigned) >= low
    return count


@compiled
def find_threshold(row: np.ndarray, count: int) -> tuple[int, int]:
    """What separates the ``count`` elements of largest magnitude.

    A sample says about where the threshold lies; passes that count, which fill the processor's vectors, draw two
    magnitudes around it together; the few elements that are left in between are sorted. No guess changes the result.

    Args:
        row: integer (n,), patterns.
        count: between 1 and n.

    Returns:
        Pattern of the threshold, and an end: the elements of this magnitude count before that position, those above it
        everywhere.
    """
    sample, largest = _sample(row), np.int64((1 << (8 * row.itemsize - 1)) - 1)
    # At least `low` are `below` elements, and these are enough; at least `high` are `above`, and these are too few.
    low, below, high, above = np.int64(0), row.size, largest, 0
    passes = 0
    while high - low > 1 and below - above > max(row.size >> 12, 128):
        if passes % 3 < 2:
            first, last = _guess(sample, low, high, (below - count) / (below - above), row.itemsize)
        else:  # whatever lies there, the two draw together
            first, last = low + (high - low) // 3, high - (high - low) // 3
        first = min(max(first, low + 1), high - 1)
        last = min(max(last, first), high - 1)
        from_first, from_last = _count_both(row, first, last)
        if from_last >= count:
            low, below = last, from_last
        elif from_first >= count:
            low, below, high, above = first, from_first, last, from_last
        else:
            high, above = first, from_first
        passes += 1
    if high == largest:  # nobody has counted these yet
        above = count_from(row, largest)
        if above >= count:
            return _from_ties(row, largest, count, above)
    if high - low == 1:
        return _from_ties(row, low, count - above, below - above)
    between = np.empty(below - above, row.dtype)
    _gather(row, low, high, between)
    between.sort()
    threshold = between[between.size - (count - above)]
    start, stop = np.searchsorted(between, threshold), np.searchsorted(between, threshold, side="right")
    return _from_ties(row, np.int64(threshold), count - above - (between.size - stop), stop - start)


@compiled
def _sample(row: np.ndarray) -> np.ndarray:
    """Magnitudes of elements at equal distances, sorted."""
    unsigned = row.dtype.type((1 << (8 * row.itemsize - 1)) - 1)
    size = min(max(row.size >> 7, 256), 4096)
    sample = row[:: row.size // size | 1] & unsigned  # an odd step visits every channel of a channels_last tensor
    sample.sort()
    return sample


@compiled
def _guess(sample: np.ndarray, low: int, high: int, share: float, itemsize: int) -> tuple[int, int]:
    """Two magnitudes between which the threshold probably is.

    Args:
        sample: of the row, sorted.
        low: the threshold is not below it.
        high: it is below this one.
        share: of the elements between the two, those that lie below the threshold.
        itemsize: bytes of an element.
    """
    inside = sample[np.searchsorted(sample, low) : np.searchsorted(sample, high)]
    rank = share * inside.size
    if inside.size > 2:  # what the sample has twice there, a plain background's say, the row may have many times
        middle = min(max(int(rank), 1), inside.size - 2)
        if inside[middle] == inside[middle - 1] or inside[middle] == inside[middle + 1]:
            return np.int64(inside[middle]), np.int64(inside[middle]) + 1
    octave = np.int64(1) << (8 if itemsize == 2 else 23 if itemsize == 4 else 52)
    if low >= sample[-1] and high == (1 << (8 * itemsize - 1)) - 1:  # above all that the sample has: up to the double
        return low + 1, low + min(octave, high - low)
    if inside.size >= _ENOUGH or (inside.size and high > sample[-1]):
        width = 1 + 2 * np.sqrt(max(rank * (inside.size - rank), 0.0) / inside.size)
        first, last = max(int(rank - width), 0), min(int(rank + width), inside.size - 1)
        return np.int64(inside[first]), np.int64(inside[last]) + 1
    # As if numbers lay evenly. Their patterns then crowd at the high end: they grow with the numbers' logarithms, by an
    # octave for the double (of 16 bits: between the two types).
    least = 2.0 ** ((low - high) / octave)
    lower, upper = least + (1 - least) * (share - 1 / 32), min(least + (1 - least) * (share + 1 / 32), 1.0)
    first = high + np.int64(octave * np.log2(lower)) if lower > least else low + 1
    return first, high + np.int64(octave * np.log2(upper))


@compiled
def _count_both(row: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Numbers of elements of magnitude ``low`` and more, ``high`` and more."""
    kind = row.dtype.type
    unsigned, first, last = kind((1 << (8 * row.itemsize - 1)) - 1), kind(low), kind(high)
    from_first = from_last = 0
    for i in range(row.size):
        magnitude = row[i] & unsigned
        from_first += magnitude >= first
        from_last += magnitude >= last
    return from_first, from_last


@compiled
def _gather(row: np.ndarray, low: int, high: int, found: np.ndarray) -> None:
    """Magnitudes from ``low`` and below ``high``, in order; few, so that most blocks have none."""
    kind = row.dtype.type
    unsigned, first, last = kind((1 << (8 * row.itemsize - 1)) - 1), kind(low), kind(high - 1)
    count = 0
    for start in range(0, row.size, _BLOCK):
        block = row[start : start + _BLOCK]
        inside = kind(0)
        for i in range(block.size):
            magnitude = block[i] & unsigned
            inside |= kind(magnitude >= first) & kind(magnitude <= last)
        if inside:
            for i in range(block.size):
                magnitude = block[i] & unsigned
                if magnitude >= first and magnitude <= last:
                    found[count] = magnitude
                    count += 1


@compiled
def _from_ties(row: np.ndarray, threshold: int, wanted: int, ties: int) -> tuple[int, int]:
    """The threshold, and before which position the first ``wanted`` of its ``ties`` lie."""
    if wanted == ties:
        return threshold, row.size
    unsigned, end = np.int64((1 << (8 * row.itemsize - 1)) - 1), 0
    while wanted:
        wanted -= (row[end] & unsigned) == threshold
        end += 1
    return threshold, end
