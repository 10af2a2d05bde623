"""Data sets decoded once: plain arrays beside the files they come from, memory-mapped and so shared by a node's ranks.

An entry is a directory named after a fingerprint of the files, complete or not there at all. It holds NumPy files, read
without pickle, and a description that says what must be in them: types, shapes and the SHA-256 of the data. Several
people may share it. Whose entry cannot be read by another counts as not there; that other then has one of his own.
"""

import hashlib
import logging
import os
import re
import shutil
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, ValidationError

from fedmef_dist.base.atomic import sync_directory, write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.checks import checked
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import exclusive, own_suffix, unreadable
from fedmef_dist.data.record import Findings, Reading

_LOG = logging.getLogger(__name__)
_FORMAT = 2
_DESCRIPTION = "dataset.json"
_PARTIAL = ".partial-"
_OWN = re.compile(rf"[0-9a-f]{{16}}|{re.escape(_PARTIAL)}.*")  # names that a cache gives, and may take away


@dataclass(frozen=True)
class Source:
    """A data set's files and how they are decoded.

    Attributes:
        name: of the data set; also of its part of the cache.
        files: all that ``read`` looks at, always in the same order.
        read: decodes them; raises UserError where one is damaged.
        options: what else the result depends on.
        train_files: where every training sample is a file of its own, these, in the samples' order.
        test_files: the same of the test samples.
        skipped: what was passed over in looking for the files, and how often.
    """

    name: str
    files: Sequence[Path]
    read: Callable[[], Dataset]
    options: tuple[str | int, ...] = ()
    train_files: Sequence[Path] = ()
    test_files: Sequence[Path] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)


class _Description(Settings):
    """What an entry holds: everything of a data set but its arrays, and their types, shapes and digest."""

    name: str
    fingerprint: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    reading: Reading
    findings: Findings | None
    arrays: dict[str, tuple[str, tuple[int, ...]]]


def load_cached(source: Source, root: Path, *, verify: bool = True) -> Dataset:
    """The data set, from its cache; decodes the files first where there is no entry for them as they are now.

    The cache lies in ``root/.fedmef_dist``, or where that cannot be written below the user's cache directory, or
    nowhere. With ``verify`` the SHA-256 of what is mapped must be the one that was written.

    Raises:
        UserError: a file of the source or of the cache is damaged, the source changes while it is read, or every
            training image, or every one of a class, is one constant.
    """
    dataset = _load(source, root, verify)
    return replace(dataset, reading=dataset.reading.plus(source.skipped)) if source.skipped else dataset


def _load(source: Source, root: Path, verify: bool) -> Dataset:
    fingerprint = _fingerprint(source)
    places = _places(source, root)
    for place in places:
        if (dataset := _open(place / fingerprint, fingerprint, verify)) is not None:
            return dataset
    for place in places:
        with exclusive(place) as writable:
            if writable:
                return _build(source, place, fingerprint, verify)
    _LOG.warning("%s: no place for a cache; every rank decodes the files for itself", source.name)
    return _decode(source, fingerprint)


def _decode(source: Source, fingerprint: str) -> Dataset:
    dataset = checked(source.read(), source.train_files or source.files)
    if _fingerprint(source) != fingerprint:
        raise UserError(
            f"the files of {source.name} changed while they were read",
            where=str(source.files[0].parent),
            mend="start again when nothing writes to them any more",
        )
    return dataset


def _fingerprint(source: Source) -> str:
    """16 hexadecimal digits over options, and the files' names, sizes and times of change."""
    digest = hashlib.sha256(repr((_FORMAT, source.options)).encode())
    for path in source.files:
        try:
            status = os.stat(path)  # noqa: PTH116 - half as long as Path.stat, and there may be 300,000 of them
        except OSError as error:
            raise unreadable(path, error) from error
        digest.update(repr((path.parts[-3:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]


def _places(source: Source, root: Path) -> list[Path]:
    suffix = hashlib.sha256(repr(source.options).encode()).hexdigest()[:8] if source.options else ""
    name = "-".join(filter(None, [source.name, suffix]))
    own = hashlib.sha256(os.path.realpath(root).encode()).hexdigest()[:16]
    beside = [root / ".fedmef_dist" / name] if root.is_dir() else []
    return [*beside, *(home / "fedmef_dist" / own / name for home in _homes())]


def _homes() -> list[Path]:
    """The user's cache directory; none where a container's user has no home."""
    try:
        return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")]
    except RuntimeError:
        return []


def _build(source: Source, place: Path, fingerprint: str, verify: bool) -> Dataset:
    """Decode and write, unless another process did so meanwhile; then entries for other files are of no use."""
    entry = place / fingerprint
    if (found := _open(entry, fingerprint, verify)) is not None:
        return found
    dataset = _decode(source, fingerprint)
    try:
        _write(dataset, entry, fingerprint)
        for old in place.iterdir():
            if old != entry and _OWN.fullmatch(old.name):
                shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        _LOG.warning("%s: the cache in %s cannot be written: %s", source.name, place, error)
        return dataset
    return _open(entry, fingerprint, verify) or dataset


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
    partial = entry.with_name(f"{_PARTIAL}{own_suffix()}")
    arrays = _arrays(dataset)
    description = _Description(
        name=dataset.name,
        fingerprint=fingerprint,
        digest=dataset.digest,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        pad=dataset.pad,
        flip=dataset.flip,
        reading=dataset.reading,
        findings=dataset.findings,
        arrays={name: (str(array.dtype), array.shape) for name, array in arrays.items()},
    )
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


def _open(entry: Path, fingerprint: str, verify: bool) -> Dataset | None:
    """The data set of an entry; None where there is none, or where it is another user's who keeps it to himself."""
    path = entry / _DESCRIPTION
    try:
        description = _Description.model_validate_json(path.read_bytes())
        if description.fingerprint != fingerprint:
            raise ValueError("it describes other files")
        found = {}
        for name in description.arrays:
            path = entry / f"{Path(name).name}.npy"
            found[name] = _map(path, *description.arrays[name])
        dataset = _dataset(description, found)
        if verify and dataset.digest != description.digest:
            raise ValueError("the data have another SHA-256 than when they were written")
        return dataset
    except (PermissionError, NotADirectoryError):
        return None
    except _BROKEN as error:
        if not entry.is_dir():
            return None
        reason = "not a description of a data set" if isinstance(error, ValidationError) else str(error)
        delete = "delete" if os.access(entry.parent, os.W_OK) else "ask its owner to delete"
        raise UserError(
            f"a file of the cache is damaged: {' '.join(reason.split())[:200]}",
            where=str(path),
            mend=f"{delete} {entry}; it will be made anew",
        ) from None


# NumPy parses the head of an array as Python's literals; torch has no numbers of some of its types.
_BROKEN = (
    *(OSError, ValueError, KeyError, TypeError, OverflowError),
    *(SyntaxError, RecursionError, tokenize.TokenError),
)


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
        reading=description.reading,
        findings=description.findings,
    )
