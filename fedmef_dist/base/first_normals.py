"""The first normal deviate of many keyed generators at once, without making the generators.

A generator of its own for each of a million clients takes half a minute to make. What is computed here follows NumPy's
``Generator(Philox(key)).standard_normal()`` through its fast path: Philox4x64-10 (Salmon, Moraes, Dror and Shaw, SC
2011) and the ziggurat of 256 layers (Marsaglia and Tsang, J. Stat. Softw. 2000). The one draw in a hundred that leaves
this path is left to NumPy itself.
"""

from functools import cache
from math import erfc, exp, log, pi, sqrt

import numpy as np

from fedmef_dist.base.keyed_digests import LONGEST_PREFIX, digest_words
from fedmef_dist.base.randomness import numpy_generator

_EDGE = 3.6541528853610088  # where the ziggurat's tail begins
_MANTISSA = 2.0**52
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_PHILOX = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
_CHUNK = 1 << 15  # fits the processor's cache
_SAFE = 1 - 1e-9  # the tables below are exact to far less


def first_normals(seed: int, purpose: str, keys: np.ndarray) -> np.ndarray:
    """What ``numpy_generator(seed, purpose, key).standard_normal()`` gives for each key, to 1e-12 of its value.

    Args:
        seed: the run's.
        purpose: of the draw.
        keys: int64 (n,), none negative.

    Returns:
        float64 (n,).
    """
    start = f"({seed!r}, {purpose!r}, ".encode()
    if len(start) >= LONGEST_PREFIX:
        return np.array([numpy_generator(seed, purpose, key).standard_normal() for key in keys.tolist()])
    found = np.empty(len(keys))
    for first in range(0, len(keys), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        found[chunk] = _chunk(seed, purpose, start, keys[chunk])
    return found


def _chunk(seed: int, purpose: str, start: bytes, keys: np.ndarray) -> np.ndarray:
    words = digest_words(start, np.ascontiguousarray(keys, np.int64), b")")
    drawn = _first_word(words[:, 0], words[:, 1])
    edges, widths = _ziggurat()
    layer = (drawn & np.uint64(0xFF)).astype(np.intp)
    magnitude = (drawn >> np.uint64(9)) & np.uint64(2**52 - 1)
    normal = magnitude * widths[layer]
    normal[(drawn >> np.uint64(8)) & np.uint64(1) > 0] *= -1
    for place in np.flatnonzero(magnitude >= edges[layer]).tolist():
        normal[place] = numpy_generator(seed, purpose, int(keys[place])).standard_normal()
    return normal


def _first_word(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Philox4x64-10's first output for each of these keys, whose two halves are uint64 (n,); the counter is at 1."""
    counter = [np.ones_like(first), *(np.zeros_like(first) for _ in range(3))]
    for step in range(10):
        if step:
            first, second = first + _WEYL[0], second + _WEYL[1]
        (high0, low0), (high1, low1) = (_product(counter[2 * i], _PHILOX[i]) for i in range(2))
        counter = [high1 ^ counter[1] ^ first, low1, high0 ^ counter[3] ^ second, low0]
    return counter[0]


def _product(a: np.ndarray, b: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """High and low half of a 128-bit product."""
    a0, a1, b0, b1 = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a1 * b0 + ((a0 * b0) >> _HALF)
    return a1 * b1 + (middle >> _HALF) + ((a0 * b1 + (middle & _LOW)) >> _HALF), a * b


@cache
def _ziggurat() -> tuple[np.ndarray, np.ndarray]:
    """Below which magnitude a layer's draws are surely accepted, uint64 (256,), and its width over the mantissa."""
    density = exp(-0.5 * _EDGE**2)
    area = _EDGE * density + sqrt(pi / 2) * erfc(_EDGE / sqrt(2))
    edges, widths = [0.0] * 256, [0.0] * 256
    edges[0], widths[0] = _EDGE * density / area, area / density
    widths[255] = before = _EDGE
    for layer in range(254, 0, -1):
        density += area / before
        width = sqrt(-2 * log(density))
        edges[layer + 1], widths[layer] = width / before, width
        before = width
    return (np.array(edges) * _MANTISSA * _SAFE).astype(np.uint64), np.array(widths) / _MANTISSA
