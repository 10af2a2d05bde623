"""Compiled loops over a tensor's memory on the CPU: one pass where separate operations would take several.

All work on bit patterns, floats seen as integers of their size: without its sign a float's pattern is an integer in the
order of magnitude, NaN above infinity. What decides about an element is computed or looked up, not branched on, and
what belongs together is eight elements, one byte of a bitmap.
"""

from functools import cache

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache

_BLOCK = 128
_PART = 1024  # elements whose flags are worked out together, so that the compiler fills its vectors
_TO_HIGHEST = np.uint64(0x0102040810204080)
_FLAGS = np.arange(256)[:, None] >> np.arange(8) & 1
# Of a byte's eight flags: how many are set before each, how many in all, and all bits set where the flag is.
_RANKS = (_FLAGS.cumsum(1) - _FLAGS).astype(np.uint8)
_COUNTS = _FLAGS.sum(1).astype(np.uint8)
_MASKS = (-_FLAGS).astype(np.int8)


@cache
def prepare(kind: np.dtype) -> None:
    """Compiles the loops for integers of this ``kind``, or loads what an earlier process has compiled."""
    fill_cache(count_from, kind.name, lambda: _call_all(kind))


def _call_all(kind: np.dtype) -> None:
    row, bitmap = np.ones(9, kind), np.zeros(2, np.uint8)
    count_from(row, 1)
    find_threshold(row, 1)
    pack_row(row, 1, 9, bitmap, row.copy())
    unpack_row(bitmap, row, row.copy())
    pack_between(row, 2, bitmap)
    select(bitmap, row, row.copy())
    count_bits(bitmap)


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
    if inside.size >= 256:
        width = 1 + 2 * np.sqrt(max(rank * (inside.size - rank), 0.0) / inside.size)
        first, last = max(int(rank - width), 0), min(int(rank + width), inside.size - 1)
        return np.int64(inside[first]), np.int64(inside[last]) + 1
    # As if numbers lay evenly. Their patterns then crowd at the high end: they grow with the numbers' logarithms, in
    # each octave by so much (of 16 bits: between the two types).
    octave = 2.0 ** (8 if itemsize == 2 else 23 if itemsize == 4 else 52)
    least = 2.0 ** ((low - high) / octave)
    lower, upper = least + (1 - least) * (share - 1 / 32), least + (1 - least) * (share + 1 / 32)
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


@compiled
def pack_row(row: np.ndarray, threshold: int, end: int, bitmap: np.ndarray, values: np.ndarray) -> None:
    """Packs the elements of magnitude ``threshold`` and more; from position ``end`` on only those above it.

    Args:
        row: integer (n,), patterns.
        threshold: pattern without sign.
        end: see above.
        bitmap: uint8 (ceil(n / 8),), zeros; gets a 1 where an element was chosen, little endian within a byte.
        values: like ``row``, as many elements as are chosen; gets them in order.
    """
    middle = min(8 * (end // 8 + 1), row.size)
    byte, position = _pack_bytes(row, threshold, 0, end // 8, 0, bitmap, values)
    position = _pack_slowly(row, threshold, end, 8 * byte, middle, position, bitmap, values)
    # Nothing is larger than the largest pattern, and one more would not fit its type.
    if middle < row.size and threshold < (1 << (8 * row.itemsize - 1)) - 1:
        byte, position = _pack_bytes(row, threshold + 1, middle // 8, row.size // 8, position, bitmap, values)
        _pack_slowly(row, threshold, end, 8 * byte, row.size, position, bitmap, values)


@compiled
def _pack_bytes(
    row: np.ndarray, threshold: int, byte: int, stop: int, position: int, bitmap: np.ndarray, values: np.ndarray
) -> tuple[int, int]:
    """Packs whole bytes' elements from ``byte`` on, to ``stop`` or to where ``values`` has less than a byte's room.

    Returns the first byte and the first place in ``values`` that are left.
    """
    kind = row.dtype.type
    unsigned, low = kind((1 << (8 * row.itemsize - 1)) - 1), kind(threshold)
    # Every element is written where the next chosen one belongs, so eight places have to be left.
    while byte < stop and position + 8 <= values.size:
        flags = 0
        for bit in range(8):
            flags |= int((row[8 * byte + bit] & unsigned) >= low) << bit
        for bit in range(8):
            values[position + int(_RANKS[flags, bit])] = row[8 * byte + bit]
        position += int(_COUNTS[flags])
        bitmap[byte] = flags
        byte += 1
    return byte, position


@compiled
def _pack_slowly(
    row: np.ndarray,
    threshold: int,
    end: int,
    start: int,
    stop: int,
    position: int,
    bitmap: np.ndarray,
    values: np.ndarray,
) -> int:
    """Packs the elements from ``start`` to ``stop``; returns the first place in ``values`` that is left."""
    unsigned = (1 << (8 * row.itemsize - 1)) - 1
    for i in range(start, stop):
        magnitude = row[i] & unsigned
        if magnitude > threshold or (magnitude == threshold and i < end):
            values[position] = row[i]
            bitmap[i >> 3] |= 1 << (i & 7)
            position += 1
    return position


@compiled
def unpack_row(bitmap: np.ndarray, values: np.ndarray, row: np.ndarray) -> None:
    """The inverse of :func:`pack_row`.

    Args:
        bitmap: uint8 (ceil(n / 8),).
        values: integer, the chosen elements.
        row: like ``values``, (n,); gets the elements, 0 where none was chosen.
    """
    kind = row.dtype.type
    byte = position = 0
    while 8 * byte + 8 <= row.size and position + 8 <= values.size:
        flags = bitmap[byte]
        ranks, masks = _RANKS[flags], _MASKS[flags]
        for bit in range(8):
            row[8 * byte + bit] = values[position + int(ranks[bit])] & kind(masks[bit])
        position += int(_COUNTS[flags])
        byte += 1
    for i in range(8 * byte, row.size):
        row[i] = 0
        if bitmap[i >> 3] >> (i & 7) & 1:
            row[i] = values[position]
            position += 1


@compiled
def count_bits(bitmap: np.ndarray) -> int:
    """How many bits of ``bitmap``, uint8 (n,), are set."""
    count = 0
    for byte in bitmap:
        count += int(_COUNTS[byte])
    return count


@compiled
def pack_between(row: np.ndarray, high: int, bitmap: np.ndarray) -> None:
    """Sets the bits of the elements above 0 and below the positive number whose pattern is ``high``.

    Args:
        row: integer (n,), patterns.
        high: pattern.
        bitmap: uint8 (ceil(n / 8),); every byte is written.
    """
    kind = row.dtype.type
    between, below = np.empty(_PART, np.uint8), kind(high)
    for start in range(0, row.size, _PART):
        some = row[start : start + _PART]
        for i in range(some.size):
            between[i] = np.uint8(some[i] > 0) & np.uint8(some[i] < below)
        for i in range(some.size, 8 * ((some.size + 7) // 8)):
            between[i] = 0
        _join(between, bitmap[start // 8 : (start + some.size + 7) // 8])


@compiled
def _join(flags: np.ndarray, bitmap: np.ndarray) -> None:
    """Makes each eight of ``flags``, uint8 (n,) of 0 and 1, a byte of ``bitmap``, as many as it has."""
    # The product brings the lowest bit of byte k to bit 56 + k, and nothing else there.
    eights = flags.view(np.uint64)
    for i in range(bitmap.size):
        bitmap[i] = np.uint8((eights[i] * _TO_HIGHEST) >> np.uint64(56))


@compiled
def select(bitmap: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
    """Copies the elements of ``row``, integer (n,), whose bit is set to ``out``; the others become 0 there."""
    kind = row.dtype.type
    for byte in range(row.size // 8):
        flags = np.int32(bitmap[byte])
        for bit in range(8):  # shifted, not looked up: so it becomes a few operations on a whole vector
            out[8 * byte + bit] = row[8 * byte + bit] & -kind(flags >> np.int32(bit) & np.int32(1))
    for i in range(row.size // 8 * 8, row.size):
        out[i] = row[i] & -kind(bitmap[i >> 3] >> (i & 7) & 1)
