"""Data sets decoded once: plain arrays beside the files they come from, memory-mapped and so shared by a node's ranks.

An entry is a directory named after a fingerprint of the files, complete or not there at all. It holds NumPy files, read
without pickle, and a description that says what must be in them.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from fedmef_dist.base.atomic import sync_directory, write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import exclusive

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_DESCRIPTION = "dataset.json"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Source:
    """A data set's files and how they are decoded.

    Attributes:
        name: of the data set; also of its part of the cache.
        files: all that ``read`` looks at, always in the same order.
        read: decodes them; raises UserError where one is damaged.
        options: what else the result depends on.
    """

    name: str
    files: Sequence[Path]
    read: Callable[[], Dataset]
    options: tuple[str | int, ...] = ()


class _Description(Settings):
    """What an entry holds: everything of a data set but its arrays, and their types and shapes."""

    name: str
    fingerprint: str
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    arrays: dict[str, tuple[str, tuple[int, ...]]]


def load_cached(source: Source, root: Path) -> Dataset:
    """The data set, from its cache; decodes the files first where there is no entry for them as they are now.

    The cache lies in ``root/.fedmef_dist``, or where that cannot be written below the user's cache directory, or
    nowhere.

    Raises:
        UserError: a file of the source or of the cache is damaged.
    """
    fingerprint = _fingerprint(source)
    places = _places(source, root)
    for place in places:
        if (place / fingerprint).is_dir():
            return _open(place / fingerprint, fingerprint)
    for place in places:
        with exclusive(place) as writable:
            if writable:
                return _build(source, place, fingerprint)
    _LOG.warning("%s: no place for a cache; every rank decodes the files for itself", source.name)
    return source.read()


def _fingerprint(source: Source) -> str:
    """16 hexadecimal digits over options, and the files' names, sizes and times of change."""
    digest = hashlib.sha256(repr((_FORMAT, source.options)).encode())
    for path in source.files:
        status = os.stat(path)  # noqa: PTH116 - half as long as Path.stat, and there may be 300,000 of them
        digest.update(repr((path.parts[-3:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _places(source: Source, root: Path) -> list[Path]:
    suffix = hashlib.sha256(repr(source.options).encode()).hexdigest()[:8] if source.options else ""
    name = "-".join(filter(None, [source.name, suffix]))
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - raises without a home
    own = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    beside = [root / ".fedmef_dist" / name] if root.is_dir() else []
    # A user without a home has no such place.
    return beside if home.startswith("~") else [*beside, Path(home) / "fedmef_dist" / own / name]


def _build(source: Source, place: Path, fingerprint: str) -> Dataset:
    """Decode and write, unless another process did so meanwhile; then entries for other files are of no use."""
    entry = place / fingerprint
    if not entry.is_dir():
        dataset = source.read()
        try:
            _write(dataset, entry, fingerprint)
        except OSError as error:
            _LOG.warning("%s: the cache in %s cannot be written: %s", source.name, place, error)
            return dataset
        for old in place.iterdir():
            if old.is_dir() and old != entry:
                shutil.rmtree(old, ignore_errors=True)
    return _open(entry, fingerprint)


def _arrays(dataset: Dataset) -> dict[str, np.ndarray]:
    parts = {
        "train-images": dataset.train.images.permute(0, 2, 3, 1),
        "train-labels": dataset.train.labels,
        "train-owners": dataset.owners,
        "test-images": dataset.test.images.permute(0, 2, 3, 1),
        "test-labels": dataset.test.labels,
        "test-owners": dataset.test_owners,
    }
    return {name: tensor.contiguous().numpy() for name, tensor in parts.items() if tensor is not None}


def _write(dataset: Dataset, entry: Path, fingerprint: str) -> None:
    """Under another name first; the entry appears whole, or another process's stays."""
    partial = entry.with_name(f"{_PARTIAL}{os.uname().nodename}-{os.getpid()}")
    arrays = _arrays(dataset)
    description = _Description(
        name=dataset.name,
        fingerprint=fingerprint,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        pad=dataset.pad,
        flip=dataset.flip,
        arrays={name: (str(array.dtype), array.shape) for name, array in arrays.items()},
    )
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, array in arrays.items():
            with (partial / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        write_text(partial / _DESCRIPTION, description.model_dump_json(indent=2))
        partial.rename(entry)
        sync_directory(entry.parent)
    except OSError:
        if not entry.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _open(entry: Path, fingerprint: str) -> Dataset:
    path = entry / _DESCRIPTION
    try:
        description = _Description.model_validate_json(path.read_bytes())
        if description.fingerprint != fingerprint:
            raise ValueError("it describes other files")
        found = {}
        for name in description.arrays:
            path = entry / f"{Path(name).name}.npy"
            found[name] = _map(path, *description.arrays[name])
        return _dataset(description, found)
    except (OSError, ValueError, KeyError) as error:
        reason = "not a description of a data set" if isinstance(error, ValidationError) else str(error)
        raise UserError(
            f"a file of the cache is damaged: {' '.join(reason.split())[:200]}",
            where=str(path),
            mend=f"delete {entry}; it will be made anew",
        ) from None


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The array in ``path``, in memory that is shared until somebody writes to it. Raises ValueError, OSError."""
    array = np.lib.format.open_memmap(path, mode="c")
    if (str(array.dtype), array.shape, array.flags.c_contiguous) != (dtype, shape, True):
        raise ValueError(f"expected {dtype} {shape}, found {array.dtype} {array.shape}")
    return torch.from_numpy(array)


def _dataset(description: _Description, arrays: dict[str, torch.Tensor]) -> Dataset:
    splits = []
    for part in ("train", "test"):
        images, labels = arrays[f"{part}-images"], arrays[f"{part}-labels"]
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(f"{part}: not images and labels")
        if len(images) != len(labels) or not len(labels) or not 0 <= labels.min() <= labels.max() < description.classes:
            raise ValueError(f"{part}: not a label of 0 to {description.classes - 1} for every image")
        owners = arrays.get(f"{part}-owners", labels)
        if owners.dtype != torch.int64 or owners.shape != labels.shape:
            raise ValueError(f"{part}: not an owner for every image")
        splits.append(Split(images.permute(0, 3, 1, 2), labels))
    if not len(description.mean) == len(description.std) == splits[0].images.shape[1] == splits[1].images.shape[1]:
        raise ValueError("not a mean and a deviation for every channel")
    return Dataset(
        name=description.name,
        train=splits[0],
        test=splits[1],
        classes=description.classes,
        mean=description.mean,
        std=description.std,
        pad=description.pad,
        flip=description.flip,
        owners=arrays.get("train-owners"),
        test_owners=arrays.get("test-owners"),
    )
