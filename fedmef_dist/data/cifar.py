"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their binary versions; the Python ones are pickles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, read_bytes

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

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    _refuse_pickles(root / "cifar-10-batches-py", CIFAR10, download)
    folder = CIFAR10.ensure(root, TRAIN + TEST, download)

    def read() -> Dataset:
        train, test = _split(folder, TRAIN, 1, 10), _split(folder, TEST, 1, 10)
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
        return Dataset("cifar10", train, test, 10, mean, std, pad=4, flip=True)

    return Source("cifar10", [folder / name for name in TRAIN + TEST], read)


def cifar100(root: Path, download: bool) -> Source:
    """``root/cifar-100-binary/{train,test}.bin``: records of a coarse label, a fine label (used) and 3,072 pixels.

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    _refuse_pickles(root / "cifar-100-python", CIFAR100, download)
    files = ("train.bin", "test.bin")
    folder = CIFAR100.ensure(root, files, download)

    def read() -> Dataset:
        train, test = (_split(folder, (name,), 2, 100) for name in files)
        mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
        return Dataset("cifar100", train, test, 100, mean, std, pad=4, flip=True)

    return Source("cifar100", [folder / name for name in files], read)


def _refuse_pickles(folder: Path, binary: Archive, download: bool) -> None:
    if folder.exists() and not download and not (folder.parent / binary.folder).exists():
        raise UserError(
            f"{folder} is the Python version, a pickle, which is not opened for safety",
            where=f"{folder.parent / binary.folder}",
            mend=f"unpack {binary.url.rpartition('/')[2]} there, or set data.download=true",
        )


def _split(folder: Path, names: Sequence[str], labels: int, classes: int) -> Split:
    """The records of these files, each of so many labels, of which the last is wanted, and the pixels."""
    records = np.concatenate([_records(folder / name, labels, classes) for name in names])
    images = torch.from_numpy(records[:, labels:].reshape(-1, 3, 32, 32))
    wanted = torch.from_numpy(records[:, labels - 1].astype(np.int64))
    return Split(images.contiguous(memory_format=torch.channels_last), wanted)


def _records(path: Path, labels: int, classes: int) -> np.ndarray:
    content = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if content.size % (labels + PIXELS):
        raise damaged(path, f"whole records of {labels + PIXELS} bytes", f"{content.size} bytes")
    records = content.reshape(-1, labels + PIXELS)
    largest = records[:, labels - 1].max()
    if largest >= classes:
        raise damaged(path, f"labels of 0 to {classes - 1}", f"a label of {largest}")
    return records
