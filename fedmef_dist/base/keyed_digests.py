"""SHA-256 of many short keys in one compiled loop, for draws that each have a key of their own."""

from functools import cache
from math import isqrt

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache

_BLOCK = 64
# What fits into one block: 8 bytes of length, one that ends the message, and the longest number with its sign.
LONGEST_PREFIX = _BLOCK - 8 - 1 - 20


def digest_words(prefix: bytes, numbers: np.ndarray, suffix: bytes) -> np.ndarray:
    """The first 16 bytes of SHA-256 of ``prefix``, the number in decimals, ``suffix``, as uint64 (n, 2).

    Args:
        prefix: with ``suffix`` at most ``LONGEST_PREFIX`` bytes.
        numbers: int64 (n,), none negative.
        suffix: what comes behind the number.
    """
    _prepare()
    words = np.empty((len(numbers), 4), np.uint32)
    first, last = (np.frombuffer(part, np.uint8) for part in (prefix, suffix))
    _digest_all(first, numbers, last, _FRACTIONS, words)
    return words.astype(">u4").view("<u8").astype(np.uint64)


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found if prime <= isqrt(number)):
            found.append(number)
        number += 1
    return found


def _fractions() -> np.ndarray:
    """FIPS 180-4: 32 bits of the fractions of the first 64 primes' cube roots, and of the first 8 primes' roots."""
    cube = [int((prime ** (1 / 3) % 1) * 2**32) for prime in _primes(64)]
    square = [isqrt(prime << 64) % 2**32 for prime in _primes(8)]
    return np.array(cube + square, np.int64)


_FRACTIONS = _fractions()


@cache
def _prepare() -> None:
    one = np.zeros(1, np.int64)
    empty = np.frombuffer(b"x", np.uint8)
    fill_cache(_digest_all, "", lambda: _digest_all(empty, one, empty, _FRACTIONS, np.empty((1, 4), np.uint32)))


@compiled
def _digest_all(
    prefix: np.ndarray, numbers: np.ndarray, suffix: np.ndarray, fractions: np.ndarray, words: np.ndarray
) -> None:
    """Fills ``words``, uint32 (n, 4). Arithmetic on 32 bits is done in int64, where sums of a few cannot overflow."""
    low = 0xFFFFFFFF
    message, schedule, digits = np.zeros(64, np.int64), np.zeros(64, np.int64), np.zeros(20, np.int64)
    for place in range(numbers.size):
        message[:] = 0
        length = prefix.size
        for i in range(length):
            message[i] = prefix[i]
        count, rest = 0, numbers[place]
        while rest > 0 or count == 0:
            digits[count] = 48 + rest % 10
            rest //= 10
            count += 1
        for i in range(count):
            message[length] = digits[count - 1 - i]
            length += 1
        for i in range(suffix.size):
            message[length] = suffix[i]
            length += 1
        message[length] = 0x80
        message[62], message[63] = (8 * length) >> 8, (8 * length) & 0xFF
        for i in range(16):
            byte = 4 * i
            schedule[i] = message[byte] << 24 | message[byte + 1] << 16 | message[byte + 2] << 8 | message[byte + 3]
        for i in range(16, 64):
            x, y = schedule[i - 15], schedule[i - 2]
            s0 = (x >> 7 | x << 25) ^ (x >> 18 | x << 14) ^ (x >> 3)
            s1 = (y >> 17 | y << 15) ^ (y >> 19 | y << 13) ^ (y >> 10)
            schedule[i] = (schedule[i - 16] + (s0 & low) + schedule[i - 7] + (s1 & low)) & low
        a, b, c, d = fractions[64], fractions[65], fractions[66], fractions[67]
        e, f, g, h = fractions[68], fractions[69], fractions[70], fractions[71]
        for i in range(64):
            s1 = ((e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)) & low
            chosen = (e & f) ^ (~e & low & g)
            first = h + s1 + chosen + fractions[i] + schedule[i]
            s0 = ((a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)) & low
            majority = (a & b) ^ (a & c) ^ (b & c)
            h, g, f, e = g, f, e, (d + first) & low
            d, c, b, a = c, b, a, (first + s0 + majority) & low
        words[place, 0] = (fractions[64] + a) & low
        words[place, 1] = (fractions[65] + b) & low
        words[place, 2] = (fractions[66] + c) & low
        words[place, 3] = (fractions[67] + d) & low
