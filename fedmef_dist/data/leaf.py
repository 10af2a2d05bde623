"""LEAF's JSON files: a mapping ``user_data`` from each user to samples ``x`` and labels ``y``."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.data.files import damaged, read_bytes

_MEND = "make it again with LEAF's preprocess.sh"


@dataclass(frozen=True)
class Writing:
    """What one writer has in one file: pixels, uint8 (n, pixels), and labels, int64 (n,)."""

    writer: str
    pixels: np.ndarray
    labels: np.ndarray


def read_writings(paths: Sequence[Path], pixels: int, classes: int) -> tuple[list[Writing], dict[str, int]]:
    """All writers with samples, and what was passed over: files without users, writers without samples.

    Raises:
        UserError: a file is not LEAF's, or no writer has a sample.
    """
    skipped: Counter[str] = Counter()
    found = [writing for path in paths for writing in _of_file(path, pixels, classes, skipped)]
    if not found:
        raise damaged(paths[0], "at least one writer with a sample", "none", _MEND)
    return found, {reason: count for reason, count in skipped.items() if count}


def _of_file(path: Path, pixels: int, classes: int, skipped: Counter[str]) -> Iterator[Writing]:
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a JSON file", str(error)[:100], _MEND) from error
    data = content.get("user_data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
        raise damaged(path, "LEAF's key user_data", "none", _MEND)
    if not data:
        skipped["files without users"] += 1
    skipped.update({"users with another number of samples than the file says": _disagreeing(content, data)})
    for writer, samples in data.items():
        writing = _writing(path, writer, samples, pixels, classes)
        if writing is None:
            skipped["writers without samples"] += 1
        else:
            yield writing


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping none of whose keys stands twice: the samples of the first would be lost. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that stands twice")
    return found


def _disagreeing(content: dict[str, Any], data: dict[str, Any]) -> int:
    """How many users have other samples than LEAF's lists ``users`` and ``num_samples`` say, where these are there."""
    users, counts = content.get("users"), content.get("num_samples")
    if not isinstance(users, list) or not isinstance(counts, list) or len(users) != len(counts):
        return 0
    said = {str(user): count for user, count in zip(users, counts, strict=True)}
    held = {
        user: len(one["y"]) for user, one in data.items() if isinstance(one, dict) and isinstance(one.get("y"), list)
    }
    return sum(said.get(user, 0) != held.get(user, 0) for user in {*said, *held})


def _writing(path: Path, writer: str, samples: Any, pixels: int, classes: int) -> Writing | None:
    where = f"for writer {writer[:40]!r}"
    if not isinstance(samples, dict):
        raise damaged(path, f"the keys x and y {where}", "none", _MEND)
    if samples.get("x") == [] == samples.get("y"):
        return None
    try:
        values = np.array(samples.get("x"), dtype=np.float64)
        labels = np.array(samples.get("y"), dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(path, f"numbers {where}", str(error)[:100], _MEND) from error
    return checked_writing(path, writer, values, labels, pixels, classes)


def checked_writing(
    path: Path, writer: str, values: np.ndarray, labels: np.ndarray, pixels: int, classes: int
) -> Writing:
    """The samples with pixels from 0 to 255, of float (n, pixels) from 0 to 1 and labels (n,). Raises UserError."""
    where = f"for writer {writer[:40]!r}"
    if labels.ndim != 1 or not labels.size or values.shape != (labels.size, pixels):
        raise damaged(path, f"{pixels} pixels and a label for each image {where}", f"{values.shape}, {labels.shape}")
    if not (values.min() >= 0 and values.max() <= 1):
        raise damaged(path, f"pixels of 0 to 1 {where}", f"{values.min()} to {values.max()}", _MEND)
    if not (labels.min() >= 0 and labels.max() < classes and (labels == np.floor(labels)).all()):
        raise damaged(path, f"labels of 0 to {classes - 1} {where}", f"{labels.min()} to {labels.max()}", _MEND)
    return Writing(writer, np.round(values * 255).astype(np.uint8), labels.astype(np.int64))
