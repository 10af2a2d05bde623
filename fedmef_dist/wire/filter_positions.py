"""Positions within filters as bytes, where sender and receiver know how many there are in each filter.

So it is with ``swap: filter``: a filter grows as many weights as it loses, and which it loses is known. Neither a count
nor a tag travels, since both sides find the shortest encoding from the counts alone. Filters of which no weight is
chosen, or every weight, take no bits. For the k positions among the n columns of each other filter:

- bitmap: n bits;
- split columns, with any number l of low bits: the l low bits of each column, then, a filter after the other, how far
  the rest of each column is from that of the one before it, in unary: a set bit for each column, a bit that is not set
  for each step, (n - 1) >> l steps in all. This is the code of Elias (1974, J. ACM 21) and Fano. It is longer than the
  logarithm of the number of choices by about 0.6 bits a position for many in a filter, by 1.4 for two. Numbering the
  choices would save that, at the price of sums of huge binomials;
- where l is all bits of a column, nothing follows: these are the column numbers alone.
"""

import numpy as np

from fedmef_dist.wire.bits import index_bits, pack, pack_flags, packed_bytes, unpack, unpack_flags

_BITMAP = -1


def encode_in_filters(chosen: np.ndarray, rows: int) -> bytes:
    """Where a layer's chosen weights are; how many of each filter are is not told.

    Args:
        chosen: bool (size,).
        rows: filters; size is a multiple of it.
    """
    filters = chosen.reshape(rows, -1)
    columns, counts = filters.shape[1], np.count_nonzero(filters, axis=1)
    filters = filters[_open(counts, columns)]
    low = _shortest(counts, columns)
    if low == _BITMAP:
        return pack_flags(filters)
    filter_, column = np.nonzero(filters)
    body = pack(column, low)
    steps = (columns - 1) >> low
    if not steps:
        return body
    ends = np.zeros(column.size + steps * len(filters), np.bool_)
    ends[(column >> low) + np.arange(column.size) + steps * filter_] = True
    return body + pack_flags(ends)


def decode_in_filters(message: bytes, counts: np.ndarray, columns: int) -> np.ndarray:
    """The inverse of :func:`encode_in_filters`: positions, int64 (count,), ascending.

    Args:
        message: what was received.
        counts: int64 (rows,), how many of each filter are chosen, 0 to ``columns``.
        columns: weights of a filter.

    Raises:
        ValueError: :func:`encode_in_filters` makes no such message for these counts.
    """
    if len(message) != in_filters_bytes(counts, columns):
        raise ValueError(f"{len(message)} bytes where {in_filters_bytes(counts, columns)} are due")
    chosen = np.zeros((len(counts), columns), np.bool_)
    chosen[counts == columns] = True
    told = np.flatnonzero(_open(counts, columns))
    low = _shortest(counts, columns)
    if low == _BITMAP:
        chosen[told] = unpack_flags(message, len(told) * columns).reshape(-1, columns)
        if (np.count_nonzero(chosen, axis=1) != counts).any():
            raise ValueError("a bitmap has another count than the filter")
        return np.flatnonzero(chosen)
    filter_ = np.repeat(np.arange(len(told)), counts[told])
    column = _read_columns(message, filter_, columns, low)
    place = filter_ * columns + column
    if (column >= columns).any() or (place[1:] <= place[:-1]).any():
        raise ValueError(f"columns do not ascend within {columns}")
    chosen[told[filter_], column] = True
    return np.flatnonzero(chosen)


def in_filters_bytes(counts: np.ndarray, columns: int) -> int:
    """Length of what :func:`encode_in_filters` makes of ``counts`` (int64 (rows,)) positions in filters of so many."""
    return min(_sizes(counts, columns).values())


def _open(counts: np.ndarray, columns: int) -> np.ndarray:
    """Which filters have something to tell, bool (rows,)."""
    open_: np.ndarray = (counts > 0) & (counts < columns)
    return open_


def _sizes(counts: np.ndarray, columns: int) -> dict[int, int]:
    told = counts[_open(counts, columns)]
    filters, count = len(told), int(told.sum())
    sizes = {_BITMAP: packed_bytes(filters * columns, 1)}
    for low in range(index_bits(columns) + 1):
        steps = (columns - 1) >> low
        sizes[low] = packed_bytes(count, low) + (packed_bytes(count + steps * filters, 1) if steps else 0)
    return sizes


def _shortest(counts: np.ndarray, columns: int) -> int:
    sizes = _sizes(counts, columns)
    return min(sizes, key=lambda kind: (sizes[kind], kind))


def _read_columns(message: bytes, filter_: np.ndarray, columns: int, low: int) -> np.ndarray:
    """Int64 (count,), not yet checked to ascend; ``filter_`` is the filter of each."""
    count, steps = len(filter_), (columns - 1) >> low
    head = packed_bytes(count, low)
    column = unpack(message[:head], count, low)
    if not steps:
        return column
    filters = int(filter_[-1]) + 1
    ends = np.flatnonzero(unpack_flags(message[head:], count + steps * filters))
    if len(ends) != count:
        raise ValueError(f"{len(ends)} columns where {count} are due")
    high = ends - np.arange(count) - steps * filter_
    if ((high < 0) | (high > steps)).any():
        raise ValueError("a filter has another number of columns")
    return column | (high << low)
