"""Named arrays from .npz, .safetensors, or a folder of .npy files; nothing in them is ever run."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.files import MOST_BYTES, damaged, open_regular

NAMES = tuple(part + name for part in ("", "test_") for name in ("images", "tokens", "labels", "clients"))
_KINDS = "biufU"  # booleans, whole numbers, fractions, text


def array_paths(path: Path) -> dict[str, Path]:
    """The files by the names of their arrays, or the one file that holds all, under the name ``""``.

    Raises:
        UserError: there is none, or it is of another kind.
    """
    if path.is_dir():
        found = {name: path / f"{name}.npy" for name in NAMES if (path / f"{name}.npy").exists()}
        if not found:
            raise UserError("a data file is missing", where=f"{path}/images.npy", mend=f"put {', '.join(NAMES)} there")
        return found
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(
            "arrays come as .npz or .safetensors, or as a folder of .npy files", where=str(path), mend="save them so"
        )
    open_regular(path).close()
    return {"": path}


def read_arrays(paths: Mapping[str, Path], only: Sequence[str] = NAMES) -> dict[str, np.ndarray]:
    """The arrays of these names that are there.

    Raises:
        UserError: a file is damaged, or an array holds neither numbers nor text.
    """
    found: dict[str, np.ndarray] = {}
    for name, path in paths.items():
        for array_name, values in _read(name, path, only):
            if values.dtype.kind not in _KINDS:
                raise damaged(path, "numbers or text", f"{array_name} of type {values.dtype}", "store another type")
            found[array_name] = values
    return found


def _read(name: str, path: Path, only: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    if name and name not in only:
        return
    try:
        with open_regular(path) as file:
            if name:
                yield name, _npy(file)
            elif path.suffix == ".npz":
                yield from _npz(file, only)
            else:
                yield from _safetensors(path, only)
    except _BROKEN as error:
        reason = str(error)[:100] or type(error).__name__
        raise damaged(path, f"a whole {path.suffix} file of plain arrays", reason, "save it again") from error


# NumPy parses the head of an array as Python's literals; zipfile has its own for encryption and odd compression.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, RuntimeError, MemoryError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)


def _npy(file: BinaryIO) -> np.ndarray:
    """Read where the head's shape fits the file's length, so that a false one cannot ask for all memory."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    read_head: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_head(file)
    body = -file.tell() + file.seek(0, 2)
    file.seek(start)
    if dtype.hasobject or any(side < 0 for side in shape):
        raise ValueError("an array of objects")
    if _count(shape) * dtype.itemsize != body:
        raise ValueError(f"a head of {dtype} {shape} and {body} bytes")
    values: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return values


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _npz(file: BinaryIO, only: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(file) as members:
        for entry in members.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in only:
                continue
            if entry.file_size > MOST_BYTES:
                raise ValueError(f"{name} of {entry.file_size:,} bytes")
            with members.open(entry) as content:
                yield name, _npy(content)  # type: ignore[arg-type]


def _safetensors(path: Path, only: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in only:
                    yield name, file.get_tensor(name)
    except (SafetensorError, AttributeError) as error:
        raise ValueError(str(error)) from error
