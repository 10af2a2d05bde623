"""A layer's values, positions and signs as bytes and back, each with a function for its exact length.

Positions are a tag of one byte and the shortest of three encodings:

- bitmap: a bit for each weight of the layer;
- COO: the index in the layer of each active weight;
- CSR: how many weights of each row are active, then the column of each.

Values or signs follow in the same order. Where that is not longer, a fourth encoding, dense, takes the place of
positions and values: its tag and the values of all weights.

Everything is little endian, bits within a byte too. Numbers of few bits are packed without gaps; zeros fill the last
byte. Throughout, a layer has ``size`` weights in ``rows`` rows of equal length (its filters), and ``count`` of them are
active. A receiver knows size and rows. Whatever it gets, it decodes or raises ValueError, and allocates no more than a
few bytes for each byte of the message and some tens for each weight of the layer.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedmef_dist.wire.bits import index_bits, pack, pack_flags, packed_bytes, unpack, unpack_flags

_TAG_BYTES = 1
_SCALE_BYTES = 4
_DENSE, _BITMAP, _COO, _CSR = range(4)
LARGEST_INT8 = 127


@dataclass(frozen=True)
class Number:
    """How a value travels.

    Attributes:
        name: in settings.
        dtype: numpy's name of the type on the wire.
        scaled: values are integers, and each layer carries one scale.
    """

    name: str
    dtype: str
    scaled: bool = False


FP32 = Number("fp32", "<f4")
FP16 = Number("fp16", "<f2")
INT8 = Number("int8", "i1", scaled=True)
NUMBERS = {number.name: number for number in (FP32, FP16, INT8)}


# Values and positions


def encode(values: np.ndarray, active: np.ndarray, rows: int, number: Number = FP32) -> bytes:
    """One layer's active values and where they are, in the shortest of four encodings: dense, bitmap, COO, CSR.

    Args:
        values: float32 (size,); what is inactive is not sent, or as 0.
        active: bool (size,).
        rows: filters; size is a multiple of it.
        number: the type in which values travel.
    """
    size, count = active.size, int(np.count_nonzero(active))
    if _dense_bytes(size, number) == encoded_bytes(size, count, rows, number):
        return bytes([_DENSE]) + encode_values(np.where(active, values, np.float32(0)), number)
    return encode_positions(active, rows) + encode_values(values[active], number)


def decode(message: bytes, size: int, rows: int, number: Number = FP32) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`encode`: positions, int64 (count,), ascending, and values, float32 (count,).

    The dense encoding gives all ``size`` positions.

    Raises:
        ValueError: :func:`encode` makes no such message for a layer of this size.
    """
    if message[:_TAG_BYTES] == bytes([_DENSE]):
        if len(message) != _dense_bytes(size, number):
            raise ValueError(f"{len(message)} bytes are no dense message of {size} values of {number.name}")
        return np.arange(size), decode_values(message[_TAG_BYTES:], number)
    head, tail = _split(message, size, rows, lambda count: values_bytes(count, number))
    positions, values = decode_positions(head, size, rows), decode_values(tail, number)
    if len(positions) != len(values):
        raise ValueError(f"{len(positions)} positions and {len(values)} values in one message")
    return positions, values


def encoded_bytes(size: int, count: int, rows: int, number: Number = FP32) -> int:
    """Length of what :func:`encode` makes of ``count`` active weights out of ``size`` in ``rows`` filters."""
    return min(_dense_bytes(size, number), positions_bytes(size, count, rows) + values_bytes(count, number))


def _dense_bytes(size: int, number: Number) -> int:
    return _TAG_BYTES + values_bytes(size, number)


# Values alone


def encode_values(values: np.ndarray, number: Number) -> bytes:
    """Values whose positions the receiver knows.

    As int8 a value v is round(v / s), half to even, with the layer's scale s = max|v| / 127. It is max|v| that travels,
    not s: the largest value then keeps its bits, so what was decoded encodes to the same message again. One value that
    is not finite makes all of its layer NaN. As fp16 a value of 65,520 or more becomes infinite.

    Args:
        values: float32 (count,).
        number: the type in which they travel.
    """
    if not number.scaled or not values.size:
        with np.errstate(over="ignore"):  # the receiver refuses what is not finite; no warning is needed besides
            return values.astype(number.dtype).tobytes()
    largest = np.abs(values).max().astype("<f4")
    if not np.isfinite(largest):
        largest = np.array(np.nan, "<f4")
    # In float64, where the product is exact, so that half a scale is found to be one.
    steps = values.astype(np.float64) * LARGEST_INT8 / largest if largest > 0 else np.zeros(values.size)
    return largest.tobytes() + np.rint(steps).astype(number.dtype).tobytes()


def decode_values(message: bytes, number: Number) -> np.ndarray:
    """The inverse of :func:`encode_values`: float32 (count,).

    Raises:
        ValueError: the length fits no count, or no scale makes such integers.
    """
    head = _SCALE_BYTES if number.scaled and message else 0
    count, rest = divmod(len(message) - head, np.dtype(number.dtype).itemsize)
    if rest or (head and count < 1):
        raise ValueError(f"{len(message)} bytes fit no count of values of {number.name}")
    values = np.frombuffer(message, number.dtype, offset=head)
    if not head:
        return values.astype(np.float32)
    largest = np.frombuffer(message, "<f4", count=1)[0]
    if largest < 0 or np.isinf(largest) or (values < -LARGEST_INT8).any():
        raise ValueError(f"no scale of int8: largest magnitude {largest}, smallest integer {values.min()}")
    return (values.astype(np.float64) * largest / LARGEST_INT8).astype(np.float32)


def values_bytes(count: int, number: Number) -> int:
    """Length of what :func:`encode_values` makes of ``count`` values; no values take no bytes."""
    return count * np.dtype(number.dtype).itemsize + (_SCALE_BYTES if number.scaled and count else 0)


# Positions alone


def encode_positions(active: np.ndarray, rows: int) -> bytes:
    """Where a layer's active weights are, in the shortest of three encodings: bitmap, COO, CSR.

    Args:
        active: bool (size,).
        rows: filters; size is a multiple of it.
    """
    size, count = active.size, int(np.count_nonzero(active))
    kind = _shortest(size, count, rows)
    if kind == _BITMAP:
        body = pack_flags(active)
    elif kind == _COO:
        body = pack(np.flatnonzero(active), index_bits(size))
    else:
        columns = size // rows
        per_row = np.count_nonzero(active.reshape(rows, columns), axis=1)
        body = pack(per_row, index_bits(columns + 1))
        body += pack(np.flatnonzero(active) % columns, index_bits(columns))
    return bytes([kind]) + body


def decode_positions(message: bytes, size: int, rows: int) -> np.ndarray:
    """The inverse of :func:`encode_positions`: int64 (count,), ascending.

    Raises:
        ValueError: :func:`encode_positions` makes no such message for a layer of this size.
    """
    kind, body = _kind_of(message), message[_TAG_BYTES:]
    # The shortest encoding is never longer than a bitmap. This bounds what is allocated below.
    if len(body) > packed_bytes(size, 1):
        raise ValueError(f"{len(message)} bytes are more than the positions of {size} weights need")
    if kind == _BITMAP:
        positions = np.flatnonzero(unpack_flags(body, size))
    elif kind == _COO:
        positions = _read_coo(body, size)
    else:
        positions = _read_csr(body, size, rows)
    if positions.size and (positions[-1] >= size or (positions[1:] <= positions[:-1]).any()):
        raise ValueError(f"positions do not ascend within {size} weights")
    return positions


def positions_bytes(size: int, count: int, rows: int) -> int:
    """Length of what :func:`encode_positions` makes of ``count`` active weights out of ``size`` in ``rows`` filters."""
    return min(_positions_sizes(size, count, rows).values())


def _positions_sizes(size: int, count: int, rows: int) -> dict[int, int]:
    columns = size // rows
    heads = packed_bytes(rows, index_bits(columns + 1))
    return {
        _BITMAP: _TAG_BYTES + packed_bytes(size, 1),
        _COO: _TAG_BYTES + packed_bytes(count, index_bits(size)),
        _CSR: _TAG_BYTES + heads + packed_bytes(count, index_bits(columns)),
    }


def _shortest(size: int, count: int, rows: int) -> int:
    sizes = _positions_sizes(size, count, rows)
    return min(sizes, key=lambda kind: (sizes[kind], kind))


def _kind_of(message: bytes) -> int:
    if not message or message[0] not in (_BITMAP, _COO, _CSR):
        raise ValueError(f"unknown encoding {message[0]}" if message else "an empty message")
    return message[0]


def _read_coo(body: bytes, size: int) -> np.ndarray:
    bits = index_bits(size)
    # Several counts may fill as many bytes; what is 0 behind the least of them is no index, since indices ascend.
    least = (8 * (len(body) - 1)) // bits + 1 if body else 0
    most = 8 * len(body) // bits
    indices = unpack(body, most, bits)
    return indices[: least + np.count_nonzero(indices[least:])]


def _read_csr(body: bytes, size: int, rows: int) -> np.ndarray:
    columns = size // rows
    head = packed_bytes(rows, index_bits(columns + 1))
    per_row = unpack(body[:head], rows, index_bits(columns + 1))
    inside = unpack(body[head:], int(per_row.sum()), index_bits(columns))
    if (inside >= columns).any():
        raise ValueError(f"a column beyond {columns}")
    return np.repeat(np.arange(rows) * columns, per_row) + inside


# Signs


def encode_signs(signs: np.ndarray, rows: int) -> bytes:
    """A direction for each weight: the positions of those that are not 0, and one bit each, set for -1.

    Args:
        signs: int8 (size,), -1, 0 or 1.
        rows: filters; size is a multiple of it.
    """
    moving = signs != 0
    return encode_positions(moving, rows) + pack_flags(signs[moving] < 0)


def decode_signs(message: bytes, size: int, rows: int) -> np.ndarray:
    """The inverse of :func:`encode_signs`: int8 (size,).

    Raises:
        ValueError: :func:`encode_signs` makes no such message for a layer of this size.
    """
    head, tail = _split(message, size, rows, lambda count: packed_bytes(count, 1))
    positions = decode_positions(head, size, rows)
    signs = np.zeros(size, np.int8)
    signs[positions] = 1 - 2 * unpack_flags(tail, len(positions)).astype(np.int8)
    return signs


def signs_bytes(size: int, count: int, rows: int) -> int:
    """Length of what :func:`encode_signs` makes of ``count`` signs other than 0 out of ``size`` in ``rows`` filters."""
    return positions_bytes(size, count, rows) + packed_bytes(count, 1)


def _split(message: bytes, size: int, rows: int, tail_bytes: Callable[[int], int]) -> tuple[bytes, bytes]:
    """Parts positions from what follows them, ``tail_bytes`` of their count.

    Both parts never shrink as the count grows, so all counts that make a message of this length part it at one place.
    """
    kind = _kind_of(message)

    def length(count: int) -> int:
        return _positions_sizes(size, count, rows)[kind] + tail_bytes(count)

    count = bisect_left(range(size + 1), len(message), key=length)
    if count > size or length(count) != len(message):
        raise ValueError(f"a message of {len(message)} bytes fits no count of values")
    head = _positions_sizes(size, count, rows)[kind]
    return message[:head], message[head:]
