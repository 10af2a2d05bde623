"""Flags and numbers of few bits as bytes: little endian, bits within a byte too, without gaps."""

from math import ceil

import numpy as np


def index_bits(choices: int) -> int:
    """Bits that tell so many choices apart, 1 at least."""
    return max((choices - 1).bit_length(), 1)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` numbers of ``bits`` bits without gaps."""
    return ceil(count * bits / 8)


def pack_flags(flags: np.ndarray) -> bytes:
    """A bit for each flag; zeros fill the last byte."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack_flags(data: bytes, count: int) -> np.ndarray:
    """The inverse of :func:`pack_flags`: bool (count,).

    Raises:
        ValueError: the bytes are not as many as ``count`` flags take, or a bit behind the last flag is set.
    """
    if len(data) != packed_bytes(count, 1):
        raise ValueError(f"{len(data)} bytes where {count} bits are due")
    flags = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").view(np.bool_)
    if flags[count:].any():
        raise ValueError("bits are set after the last one")
    return flags[:count]


def pack(numbers: np.ndarray, bits: int) -> bytes:
    """The low ``bits`` bits of each number, at most 32."""
    flags = np.unpackbits(numbers.astype("<u4").view(np.uint8), bitorder="little")
    return pack_flags(flags.reshape(-1, 32)[:, :bits])


def unpack(data: bytes, count: int, bits: int) -> np.ndarray:
    """The inverse of :func:`pack`: int64 (count,).

    Raises:
        ValueError: as of :func:`unpack_flags`.
    """
    flags = np.zeros((count, 32), np.bool_)
    flags[:, :bits] = unpack_flags(data, count * bits).reshape(count, bits)
    return np.packbits(flags, bitorder="little").view("<u4").astype(np.int64)
