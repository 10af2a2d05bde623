"""FEMNIST: handwritten characters by writer (Caldas and others, 2018, arXiv 1812.01097).

It comes as JSON files of LEAF, or as HDF5 files of TensorFlow Federated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.images import channel_statistics
from fedmef_dist.data.leaf import Writing, read_writings
from fedmef_dist.data.numbering import number_clients
from fedmef_dist.data.record import Reading
from fedmef_dist.data.walk import Walk
from fedmef_dist.data.writers_hdf5 import read_examples

FOLDER = "femnist"
CLASSES = 62  # digits, upper-case and lower-case letters
SIDE = 28
_HDF5 = ("fed_emnist_train.h5", "fed_emnist_test.h5")


@dataclass(frozen=True)
class _Part:
    writings: list[Writing]
    skipped: dict[str, int]


def femnist(root: Path) -> Source:
    """``root/femnist``: LEAF's ``{train,test}/*.json``, or else ``fed_emnist_{train,test}.h5``.

    Of JSON files the key ``user_data`` is read, of HDF5 files ``examples/<writer>/{pixels,label}``; pixels are numbers
    from 0 to 1. Writers are the data set's natural clients; those without samples are passed over. Nobody offers the
    JSON files for download: LEAF's script makes them.

    Raises:
        UserError: there are no files.
    """
    folder, walk = root / FOLDER, Walk()
    files = [walk.named(folder / part, ".json") for part in ("train", "test")]
    if not any(files) and all((folder / name).exists() for name in _HDF5):
        files, form = [[folder / name] for name in _HDF5], "HDF5"
    else:
        form = "LEAF's JSON"
        _refuse_missing(folder, files)

    def read() -> Dataset:
        reader = read_examples if form == "HDF5" else read_writings
        train, test = (_Part(*reader(found, SIDE * SIDE, CLASSES)) for found in files)
        return _decode(train, test, {form: sum(map(len, files))})

    return Source("femnist", [path for found in files for path in found], read, skipped=walk.skipped)


def _refuse_missing(folder: Path, files: Sequence[Sequence[Path]]) -> None:
    for part, found in zip(("train", "test"), files, strict=True):
        if not found:
            raise UserError(
                "a data file is missing",
                where=f"{folder / part}/*.json, or {folder}/{', '.join(_HDF5)}",
                mend="put LEAF's files there, made by its data/femnist/preprocess.sh -s niid --sf 1.0 -k 0 -t sample",
            )


def _decode(train: _Part, test: _Part, kinds: dict[str, int]) -> Dataset:
    names = [
        [writing.writer for writing in part.writings for _ in range(len(writing.labels))] for part in (train, test)
    ]
    owners, test_owners = number_clients(names[0], names[1])
    splits = _split(train.writings), _split(test.writings)
    return Dataset(
        "femnist",
        *splits,
        CLASSES,
        *channel_statistics(splits[0].images),
        pad=2,
        flip=False,
        owners=owners,
        test_owners=test_owners,
        reading=Reading(files=kinds, skipped=train.skipped).plus(test.skipped),
    )


def _split(writings: Sequence[Writing]) -> Split:
    images = np.concatenate([writing.pixels for writing in writings]).reshape(-1, 1, SIDE, SIDE)
    labels = np.concatenate([writing.labels for writing in writings])
    return Split(torch.from_numpy(images), torch.from_numpy(labels))
