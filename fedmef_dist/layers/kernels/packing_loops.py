"""Compiled loops on the CPU that pack chosen elements behind a bitmap and bring them back, in one pass each.

They work on bit patterns, floats seen as integers of their size. What decides about an element is computed or looked
up, not branched on, and what belongs together is eight elements, one byte of a bitmap. Eight of 32 bits fill a vector:
where the processor can permute its elements (AVX2), that is how they move; to the same bits.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core.registry import cpu_target
from numba.extending import overload

from fedmef_dist.base.compiled import compiled, fill_cache

_PART = 1024  # elements whose flags are worked out together, so that the compiler fills its vectors
_TO_HIGHEST = np.uint64(0x0102040810204080)
_FLAGS = np.arange(256)[:, None] >> np.arange(8) & 1
# Of a byte's eight flags: how many are set before each, how many in all, and all bits set where the flag is.
_RANKS = (_FLAGS.cumsum(1) - _FLAGS).astype(np.uint8)
_COUNTS = _FLAGS.sum(1).astype(np.uint8)
_MASKS = (-_FLAGS).astype(np.int8)
# For a permutation of eight: which elements are packed first, and which packed one belongs to each.
_TO_FRONT = np.argsort(1 - _FLAGS, axis=1, kind="stable").astype(np.int32)
_FROM_FRONT = _RANKS.astype(np.int32)

_INT = ir.IntType(32)
_EIGHT, _EIGHT_FLAGS = ir.VectorType(_INT, 8), ir.VectorType(ir.IntType(1), 8)
_Builder = Any
_intrinsic: Any = extending.intrinsic  # typed as if the compiler's context were one of the caller's arguments


@cache
def prepare(kind: np.dtype) -> None:
    """Compiles the loops for integers of this ``kind``, or loads what an earlier process has compiled."""
    fill_cache(pack_row, kind.name, lambda: _call_all(kind))


def _call_all(kind: np.dtype) -> None:
    row, bitmap = np.ones(9, kind), np.zeros(2, np.uint8)
    pack_row(row, 1, 9, bitmap, row.copy())
    unpack_row(bitmap, row, row.copy())
    pack_between(row, 2, bitmap)
    select(bitmap, row, row.copy())
    count_bits(bitmap)


def _permutes(*arrays: Any) -> bool:
    """Whether eight elements of these are vectors that what numba compiles for can permute; their addresses follow.

    Args:
        arrays: numba's types of a row, its packed values and the bitmap.
    """
    row, values, bitmap = arrays
    lies = all(array.layout == "C" for array in arrays)
    return lies and row.dtype == values.dtype == types.int32 and bitmap.dtype == types.uint8 and has_permutation()


def has_permutation() -> bool:
    """Whether numba compiles for a processor with AVX2; NUMBA_CPU_NAME may name another one than this."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx2" in features.split(",")


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


def _pack_bytes_permuting(
    row: np.ndarray, threshold: int, byte: int, stop: int, position: int, bitmap: np.ndarray, values: np.ndarray
) -> tuple[int, int]:
    source, target, flags = _address(row), _address(values), _address(bitmap)
    low, orders = np.int32(threshold), _address(_TO_FRONT)
    while byte < stop and position + 8 <= values.size:
        position += _pack_eight(source + 32 * byte, low, flags + byte, orders, target + 4 * position)
        byte += 1
    return byte, position


@overload(_pack_bytes)
def _choose_pack_bytes(
    row: np.ndarray, threshold: int, byte: int, stop: int, position: int, bitmap: np.ndarray, values: np.ndarray
) -> Callable[..., Any]:
    return _pack_bytes_permuting if _permutes(row, values, bitmap) else _pack_bytes


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
    byte, position = _unpack_bytes(bitmap, values, row)
    for i in range(8 * byte, row.size):
        row[i] = 0
        if bitmap[i >> 3] >> (i & 7) & 1:
            row[i] = values[position]
            position += 1


def _unpack_bytes(bitmap: np.ndarray, values: np.ndarray, row: np.ndarray) -> tuple[int, int]:
    """Unpacks whole bytes' elements while eight values are left. Returns the first byte and value that are left."""
    kind = row.dtype.type
    byte = position = 0
    while 8 * byte + 8 <= row.size and position + 8 <= values.size:
        flags = bitmap[byte]
        ranks, masks = _RANKS[flags], _MASKS[flags]
        for bit in range(8):
            row[8 * byte + bit] = values[position + int(ranks[bit])] & kind(masks[bit])
        position += int(_COUNTS[flags])
        byte += 1
    return byte, position


def _unpack_bytes_permuting(bitmap: np.ndarray, values: np.ndarray, row: np.ndarray) -> tuple[int, int]:
    source, target, flags, orders = _address(values), _address(row), _address(bitmap), _address(_FROM_FRONT)
    byte = position = 0
    while 8 * byte + 8 <= row.size and position + 8 <= values.size:
        position += _unpack_eight(source + 4 * position, flags + byte, orders, target + 32 * byte)
        byte += 1
    return byte, position


@overload(_unpack_bytes)
def _choose_unpack_bytes(bitmap: np.ndarray, values: np.ndarray, row: np.ndarray) -> Callable[..., Any]:
    return _unpack_bytes_permuting if _permutes(row, values, bitmap) else _unpack_bytes


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


# --- eight elements of 32 bits as one vector; arguments are addresses


@compiled
def _address(array: np.ndarray) -> int:
    """In a signed integer: numba adds a signed and an unsigned one as floats."""
    return np.intp(array.ctypes.data)


@_intrinsic
def _pack_eight(typing: Any, source: Any, low: Any, flags: Any, orders: Any, target: Any) -> Any:
    """Writes the elements of magnitude ``low`` and more first, whatever behind them, and the byte of flags.

    Returns how many they are.
    """

    def generate(context: Any, build: _Builder, signature: Any, arguments: Any) -> Any:
        source, low, flags, orders, target = arguments
        row = _load(build, source)
        magnitudes = build.and_(row, ir.Constant(_EIGHT, [0x7FFFFFFF] * 8))
        lanes = ir.Constant(_EIGHT, ir.Undefined)
        lows = build.shuffle_vector(build.insert_element(lanes, low, _INT(0)), lanes, ir.Constant(_EIGHT, [0] * 8))
        byte = build.bitcast(build.icmp_signed(">=", magnitudes, lows), ir.IntType(8))
        build.store(byte, build.inttoptr(flags, ir.IntType(8).as_pointer()))
        _store(build, _permuted(build, row, orders, byte), target)
        return build.zext(build.ctpop(byte), ir.IntType(64))

    return types.int64(types.intp, types.int32, types.intp, types.intp, types.intp), generate


@_intrinsic
def _unpack_eight(typing: Any, source: Any, flags: Any, orders: Any, target: Any) -> Any:
    """Writes the next packed elements where the byte of flags is set, 0 elsewhere; returns how many they are."""

    def generate(context: Any, build: _Builder, signature: Any, arguments: Any) -> Any:
        source, flags, orders, target = arguments
        byte = build.load(build.inttoptr(flags, ir.IntType(8).as_pointer()))
        row = _permuted(build, _load(build, source), orders, byte)
        _store(build, build.and_(row, build.sext(build.bitcast(byte, _EIGHT_FLAGS), _EIGHT)), target)
        return build.zext(build.ctpop(byte), ir.IntType(64))

    return types.int64(types.intp, types.intp, types.intp, types.intp), generate


def _permuted(build: _Builder, row: Any, orders: Any, byte: Any) -> Any:
    """The vector in the order that the table ``orders`` has for these flags."""
    permute = build.module.declare_intrinsic("llvm.x86.avx2.permd", (), ir.FunctionType(_EIGHT, [_EIGHT, _EIGHT]))
    place = build.shl(build.zext(byte, ir.IntType(64)), ir.IntType(64)(5))  # 32 bytes an order
    return build.call(permute, [row, _load(build, build.add(orders, place))])


def _load(build: _Builder, address: Any) -> Any:
    loaded = build.load(build.inttoptr(address, _EIGHT.as_pointer()))
    loaded.align = 4
    return loaded


def _store(build: _Builder, vector: Any, address: Any) -> None:
    build.store(vector, build.inttoptr(address, _EIGHT.as_pointer())).align = 4
