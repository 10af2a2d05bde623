"""Arrays of numbers out of MATLAB files of format 5, which MATLAB itself has written since 1996 (versions 5 to 7).

The format is MathWorks' "MAT-File Format", level 5: a head of 128 bytes, then elements, each a tag (kind, bytes) and
its data, padded to 8 bytes. An array is an element of elements: flags, sizes, name, and numbers, which may be stored in
a smaller type than the array's own. A compressed element is one more element in a zlib stream.
"""

import math
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_HEAD = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX = 0x800


class _Element(NamedTuple):
    kind: int
    data: memoryview


def read_mat(content: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """The file's real arrays of numbers, by name, in column-major order; everything else in it is passed over.

    Raises:
        ValueError: it is no whole file of format 5.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:_HEAD])
    if not content.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise ValueError("no head of format 5")
    found = {}
    for element in _elements(memoryview(content)[_HEAD:], order):
        if element.kind == _COMPRESSED:
            (element,) = _elements(_inflated(element.data, order), order)
        if element.kind == _MATRIX and (named := _array(element.data, order)) is not None:
            found[named[0]] = named[1]
    return found


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    at = 0
    while at < len(data):
        element, at = _element(data, at, order)
        yield element


def _element(data: memoryview, at: int, order: str) -> tuple[_Element, int]:
    """The element at a position, and where the next one begins."""
    kind, size = (int(word) for word in _numbers(data, at, 8, f"{order}u4"))
    if kind >> 16:  # up to four bytes of data fit into the tag itself
        kind, size, start, following = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if size > 4:
            raise ValueError(f"{size} bytes in a small element")
    else:
        start = at + 8
        # Compressed elements are not padded, and writers leave the padding of the last one out.
        following = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data):
        raise ValueError(f"{start + size - len(data)} bytes are missing at the end")
    return _Element(kind, data[start : start + size]), following


def _inflated(data: memoryview, order: str) -> memoryview:
    """The one element in a zlib stream; no more of it is decompressed than the element says it has."""
    try:
        stream = zlib.decompressobj()
        head = stream.decompress(data, 8)
        size = int(_numbers(memoryview(head), 4, 4, f"{order}u4")[0])
        rest = stream.decompress(stream.unconsumed_tail, size) if size else b""
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return memoryview(head + rest)


def _array(data: memoryview, order: str) -> tuple[str, npt.NDArray[np.generic]] | None:
    """Name and values of an array; None where it holds no real numbers: text, cells, structures, sparse matrices."""
    parts = _elements(data, order)
    try:
        flags, sizes, name = next(parts), next(parts), next(parts)
        (head, *_) = _whole(flags, order)
        dtype = _CLASSES.get(int(head) & 0xFF)
        if dtype is None or int(head) & _COMPLEX:
            return None
        shape = tuple(int(size) for size in _whole(sizes, order))
        values = _values(next(parts), order)
    except StopIteration:
        raise ValueError("an array without its parts") from None
    if not shape or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{len(values)} numbers for an array {shape}")
    return bytes(name.data).decode("latin-1"), values.astype(dtype, copy=False).reshape(shape, order="F")


def _whole(element: _Element, order: str) -> npt.NDArray[np.generic]:
    """Flags and sizes: fractions may be infinite, or no numbers at all."""
    values = _values(element, order)
    if values.dtype.kind == "f":
        raise ValueError("fractions where whole numbers belong")
    return values


def _values(element: _Element, order: str) -> npt.NDArray[np.generic]:
    stored = _STORED.get(element.kind)
    if stored is None:
        raise ValueError(f"numbers of an unknown kind {element.kind}")
    return _numbers(element.data, 0, len(element.data), f"{order}{stored}")


def _numbers(data: memoryview, at: int, size: int, dtype: str) -> npt.NDArray[np.generic]:
    if at + size > len(data):
        raise ValueError("it ends in the middle of an element")
    return np.frombuffer(data[at : at + size], dtype)
