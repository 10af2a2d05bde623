"""The Python version of CIFAR: pickles, read by a machine that knows arrays of bytes and plain values and nothing else.

A pickle is a program. This reader lets it build dictionaries, lists, numbers, text, bytes, and what looks like a NumPy
array; the latter stays a note of type, shape and bytes until all is read, so no code of the file's choice ever runs.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.data.files import damaged, read_bytes

_MOST_BYTES = 1 << 30
_ARRAYS = {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in the file, its keys as text and its arrays as uint8.

    Raises:
        UserError: the file is damaged, or holds anything but plain values and arrays of bytes.
    """
    try:
        found = _Unpickler(io.BytesIO(read_bytes(path, _MOST_BYTES)), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, "a pickle of plain values and arrays of bytes", str(error)[:100] or repr(error)) from error
    if not isinstance(found, dict):
        raise damaged(path, "a dictionary", type(found).__name__)
    names = {key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key): key for key in found}
    return {name: _plain(path, found[key]) for name, key in names.items()}


def _plain(path: Path, value: Any) -> Any:
    return value.array(path) if isinstance(value, _Array) else value


class _Type:
    """Stands for a NumPy type: its name, as ``u1``."""

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields, which one byte has not."""


class _Array:
    """Stands for a NumPy array: what its state says."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, path: Path) -> np.ndarray:
        """uint8 of the shape that the state names. Raises UserError where it names something else."""
        state = self.state if isinstance(self.state, tuple) and len(self.state) == 5 else (None,) * 5
        _, shape, kind, by_columns, content = state
        content = content.encode("latin-1", "replace") if isinstance(content, str) else content
        fits = isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)
        if not (fits and isinstance(kind, _Type) and kind.name in ("u1", "|u1") and isinstance(content, bytes)):
            raise damaged(path, "an array of bytes", "another one")
        values = np.frombuffer(content, dtype=np.uint8)
        try:
            return values.reshape(shape, order="F" if by_columns is True else "C")
        except (ValueError, OverflowError) as error:  # other bytes than it says, or more axes than NumPy has
            raise damaged(path, "as many bytes as the shape of its array has", f"{values.size}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name. Raises UnpicklingError for all else."""
        if (module, name) in _ARRAYS or (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Type
        if (module, name) == ("_codecs", "encode"):
            return _Bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not opened for safety")


class _Bytes:
    """How a later Python writes bytes in an old pickle: as text and its encoding."""

    def __new__(cls, text: Any, encoding: Any = "latin1") -> Any:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError("bytes of another encoding")
        return text.encode("latin-1")

    def __setstate__(self, state: Any) -> None:
        """Bytes have none."""
