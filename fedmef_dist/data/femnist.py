"""FEMNIST: handwritten characters by writer, from JSON files of LEAF (Caldas and others, 2018, arXiv 1812.01097)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, read_bytes
from fedmef_dist.data.images import channel_statistics

FOLDER = "femnist"
CLASSES = 62  # digits, upper-case and lower-case letters
SIDE = 28


@dataclass(frozen=True)
class _Writing:
    """What one writer has in one file: pixels, uint8 (n, 784), and labels, int64 (n,)."""

    writer: str
    pixels: np.ndarray
    labels: np.ndarray


def femnist(root: Path) -> Source:
    """``root/femnist/{train,test}/*.json`` with the keys ``users`` and ``user_data``; pixels are numbers from 0 to 1.

    Writers are the data set's natural clients. Nobody offers the files for download: LEAF's script makes them.

    Raises:
        UserError: there are no files.
    """
    folder = root / FOLDER
    files = {part: sorted((folder / part).glob("*.json")) for part in ("train", "test")}
    for part, found in files.items():
        if not found:
            raise UserError(
                "a data file is missing",
                where=f"{folder / part}/*.json",
                mend="put LEAF's files there, made by its data/femnist/preprocess.sh -s niid --sf 1.0 -k 0 -t sample",
            )

    def read() -> Dataset:
        return _decode(*([writing for path in found for writing in _writings(path)] for found in files.values()))

    return Source("femnist", [path for found in files.values() for path in found], read)


def _decode(train: list[_Writing], test: list[_Writing]) -> Dataset:
    writers = sorted({writing.writer for writing in train + test})
    place = {writer: number for number, writer in enumerate(writers)}
    (train_split, owners), (test_split, test_owners) = (_split(part, place) for part in (train, test))
    mean, std = channel_statistics(train_split.images)
    return Dataset(
        "femnist",
        train_split,
        test_split,
        CLASSES,
        mean,
        std,
        pad=2,
        flip=False,
        owners=owners,
        test_owners=test_owners,
    )


def _split(writings: list[_Writing], place: dict[str, int]) -> tuple[Split, torch.Tensor]:
    images = np.concatenate([writing.pixels for writing in writings]).reshape(-1, 1, SIDE, SIDE)
    labels = np.concatenate([writing.labels for writing in writings])
    owners = np.repeat([place[writing.writer] for writing in writings], [len(writing.labels) for writing in writings])
    return Split(torch.from_numpy(images), torch.from_numpy(labels)), torch.from_numpy(owners.astype(np.int64))


def _writings(path: Path) -> Iterator[_Writing]:
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise damaged(path, "a JSON file", str(error)[:100]) from error
    data = content.get("user_data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or not data:
        raise damaged(path, "LEAF's key user_data with at least one writer", "none")
    for writer, samples in data.items():
        yield _writing(path, writer, samples)


def _writing(path: Path, writer: str, samples: Any) -> _Writing:
    where = f"for writer {writer[:40]!r}"
    if not isinstance(samples, dict):
        raise damaged(path, f"the keys x and y {where}", "none")
    try:
        pixels = np.array(samples.get("x"), dtype=np.float64)
        labels = np.array(samples.get("y"), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise damaged(path, f"numbers {where}", str(error)[:100]) from error
    if labels.ndim != 1 or not labels.size or pixels.shape != (labels.size, SIDE * SIDE):
        raise damaged(
            path, f"{SIDE * SIDE} pixels and a label for each image {where}", f"{pixels.shape}, {labels.shape}"
        )
    if not (pixels.min() >= 0 and pixels.max() <= 1):
        raise damaged(path, f"pixels of 0 to 1 {where}", f"{pixels.min()} to {pixels.max()}")
    if not (labels.min() >= 0 and labels.max() < CLASSES and (labels == np.floor(labels)).all()):
        raise damaged(path, f"labels of 0 to {CLASSES - 1} {where}", f"{labels.min()} to {labels.max()}")
    return _Writing(writer, np.round(pixels * 255).astype(np.uint8), labels.astype(np.int64))
