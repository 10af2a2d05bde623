"""Compiled loops over a tensor's memory on the CPU: one pass where separate operations would take several.

All work on bit patterns, floats seen as integers of their size: without its sign a float's pattern is an integer in the
order of magnitude, NaN above infinity. What decides about an element is computed, not branched on.
"""

from functools import cache

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache


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
    """What separates the ``count`` elements of largest magnitude, found digit by digit in histograms of 16 bits.

    Args:
        row: integer (n,), patterns.
        count: between 1 and n.

    Returns:
        Pattern of the threshold, and an end: the elements of this magnitude count before that position, those above it
        everywhere.
    """
    unsigned = (1 << (8 * row.itemsize - 1)) - 1
    histogram = np.empty(1 << 16, np.int64)
    prefix, wanted = 0, count
    for shift in range(8 * row.itemsize - 16, -1, -16):
        histogram[:] = 0
        for i in range(row.size):
            magnitude = (row[i] & unsigned) >> shift
            if magnitude >> 16 == prefix:
                histogram[magnitude & 0xFFFF] += 1
        digit = 0xFFFF
        while histogram[digit] < wanted:
            wanted -= histogram[digit]
            digit -= 1
        prefix = prefix << 16 | digit
    if wanted == histogram[prefix & 0xFFFF]:
        return prefix, row.size
    end = 0
    while wanted:
        wanted -= (row[end] & unsigned) == prefix
        end += 1
    return prefix, end


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
    unsigned = (1 << (8 * row.itemsize - 1)) - 1
    byte = position = 0
    # Every element is written where the next chosen one belongs, so eight places have to be left.
    while 8 * byte + 8 <= row.size and position + 8 <= values.size:
        flags = 0
        for bit in range(8):
            pattern = row[8 * byte + bit]
            chosen = int((pattern & unsigned) >= threshold + int(8 * byte + bit >= end))
            values[position] = pattern
            flags |= chosen << bit
            position += chosen
        bitmap[byte] = flags
        byte += 1
    for i in range(8 * byte, row.size):
        if (row[i] & unsigned) >= threshold + int(i >= end):
            values[position] = row[i]
            bitmap[i >> 3] |= 1 << (i & 7)
            position += 1


@compiled
def unpack_row(bitmap: np.ndarray, values: np.ndarray, row: np.ndarray) -> None:
    """The inverse of :func:`pack_row`.

    Args:
        bitmap: uint8 (ceil(n / 8),).
        values: integer, the chosen elements.
        row: like ``values``, (n,); gets the elements, 0 where none was chosen.
    """
    byte = position = 0
    while 8 * byte + 8 <= row.size and position + 8 <= values.size:
        flags = int(bitmap[byte])
        for bit in range(8):
            chosen = flags >> bit & 1
            row[8 * byte + bit] = values[position] & -chosen
            position += chosen
        byte += 1
    for i in range(8 * byte, row.size):
        row[i] = 0
        if bitmap[i >> 3] >> (i & 7) & 1:
            row[i] = values[position]
            position += 1


@compiled
def pack_between(row: np.ndarray, high: int, bitmap: np.ndarray) -> None:
    """Sets the bits of the elements above 0 and below the positive number whose pattern is ``high``.

    Args:
        row: integer (n,), patterns.
        high: pattern.
        bitmap: uint8 (ceil(n / 8),); every byte is written.
    """
    for byte in range(bitmap.size):
        flags = 0
        for bit in range(min(8, row.size - 8 * byte)):
            pattern = row[8 * byte + bit]
            flags |= (int(pattern > 0) & int(pattern < high)) << bit
        bitmap[byte] = flags


@compiled
def select(bitmap: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
    """Copies the elements of ``row``, integer (n,), whose bit is set to ``out``; the others become 0 there."""
    for byte in range(bitmap.size):
        flags = int(bitmap[byte])
        for bit in range(min(8, row.size - 8 * byte)):
            out[8 * byte + bit] = row[8 * byte + bit] & -(flags >> bit & 1)
