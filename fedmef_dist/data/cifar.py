"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their binary or Python versions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, read_bytes
from fedmef_dist.data.plain_pickle import read_plain_pickle
from fedmef_dist.data.record import Reading

CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
)
CIFAR100 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"
)
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
PIXELS = 3 * 32 * 32  # the red, green and blue planes


def cifar10(root: Path, download: bool) -> Source:
    """``root/cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin``: records of a label and 3,072 pixels.

    Or else the Python version, ``root/cifar-10-batches-py/{data_batch_1..5,test_batch}``.

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    form = _Form("cifar10", CIFAR10, "cifar-10-batches-py", (TRAIN, TEST), 1, 10, "labels")
    return form.source(root, download, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(root: Path, download: bool) -> Source:
    """``root/cifar-100-binary/{train,test}.bin``: records of a coarse label, a fine label (used) and 3,072 pixels.

    Or else the Python version, ``root/cifar-100-python/{train,test}``.

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    form = _Form("cifar100", CIFAR100, "cifar-100-python", (("train.bin",), ("test.bin",)), 2, 100, "fine_labels")
    return form.source(root, download, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


@dataclass(frozen=True)
class _Form:
    """How a data set lies on disk.

    Attributes:
        name: of the data set.
        binary: its binary version.
        python: folder of its Python version.
        files: of both parts, as the binary version names them; the Python version leaves the suffix out.
        labels: in front of each record; the last one is wanted.
        classes: how many there are.
        key: of the labels in the Python version.
    """

    name: str
    binary: Archive
    python: str
    files: tuple[Sequence[str], Sequence[str]]
    labels: int
    classes: int
    key: str

    def source(self, root: Path, download: bool, mean: tuple[float, ...], std: tuple[float, ...]) -> Source:
        """The binary version where it is there, or else the Python one, or else the binary one is fetched."""
        names = [*self.files[0], *self.files[1]]
        is_python = (root / self.python).is_dir() and not (root / self.binary.folder).exists()
        if is_python:
            folder, names = root / self.python, [Path(name).stem for name in names]
        else:
            folder = self.binary.ensure(root, names, download)
        paths = [folder / name for name in names]
        first_test = len(self.files[0])

        def read() -> Dataset:
            split = self._python_split if is_python else self._binary_split
            train, test = split(paths[:first_test]), split(paths[first_test:])
            kinds = {"Python version" if is_python else "binary version": len(paths)}
            reading = Reading(files=kinds)
            return Dataset(self.name, train, test, self.classes, mean, std, pad=4, flip=True, reading=reading)

        return Source(self.name, paths, read, options=("python",) if is_python else ())

    def _binary_split(self, paths: Sequence[Path]) -> Split:
        return _split(paths, self.labels, self.classes)

    def _python_split(self, paths: Sequence[Path]) -> Split:
        parts = [_batch(path, self.key, self.classes) for path in paths]
        pixels, labels = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        return _as_split(pixels, labels)


def _batch(path: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 (n, 3072), and labels, int64 (n,), of a file of the Python version."""
    content = read_plain_pickle(path)
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != PIXELS or not len(pixels):
        raise damaged(path, f"an array data, uint8 (n, {PIXELS})", "another one" if pixels is not None else "none")
    if not isinstance(labels, list) or len(labels) != len(pixels):
        raise damaged(path, f"a list {key} of {len(pixels)} labels", "another one")
    if not all(type(label) is int and 0 <= label < classes for label in labels):
        raise damaged(path, f"labels of 0 to {classes - 1}", "others")
    return pixels, np.array(labels, dtype=np.int64)


def _as_split(pixels: np.ndarray, labels: np.ndarray) -> Split:
    """Planes of red, green and blue, uint8 (n, 3072), and labels, int64 (n,), as a split."""
    images = torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3, 32, 32))
    return Split(images.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels))


def _split(paths: Sequence[Path], labels: int, classes: int) -> Split:
    """The records of these files, each of so many labels, of which the last is wanted, and the pixels."""
    records = np.concatenate([_records(path, labels, classes) for path in paths])
    return _as_split(records[:, labels:], records[:, labels - 1].astype(np.int64))


def _records(path: Path, labels: int, classes: int) -> np.ndarray:
    content = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if content.size % (labels + PIXELS):
        raise damaged(path, f"whole records of {labels + PIXELS} bytes", f"{content.size} bytes")
    records = content.reshape(-1, labels + PIXELS)
    largest = records[:, labels - 1].max()
    if largest >= classes:
        raise damaged(path, f"labels of 0 to {classes - 1}", f"a label of {largest}")
    return records
