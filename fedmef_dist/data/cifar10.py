"""CIFAR-10 (Krizhevsky, 2009) from its binary version; the Python version is a pickle and is never opened."""

import tarfile
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, fetch, read_bytes
from fedmef_dist.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes


def load_cifar10(root: Path, download: bool) -> Dataset:
    """Read ``root/cifar-10-batches-bin/{data_batch_1..5,test_batch}.bin``, records of 3,073 bytes.

    Raises:
        UserError: a file is missing, truncated, of another format, or cannot be downloaded.
    """
    folder = root / FOLDER
    missing = [name for name in TRAIN + TEST if not (folder / name).is_file()]
    if missing and not download:
        raise _missing(root, folder / missing[0])
    if missing:
        _download(root)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Dataset("cifar10", _split(folder, TRAIN), _split(folder, TEST), 10, mean, std, pad=4, flip=True)


def _missing(root: Path, path: Path) -> UserError:
    if (root / "cifar-10-batches-py").exists():
        what = (
            f"cifar10: {root / 'cifar-10-batches-py'} is the Python version, a pickle, which is not opened for safety"
        )
    else:
        what = "cifar10: a file is missing"
    return UserError(f"{what}\nexpected {path}\nunpack cifar-10-binary.tar.gz in {root}, or set data.download=true")


def _download(root: Path) -> None:
    archive = root / "cifar-10-binary.tar.gz"
    if not archive.is_file():
        fetch(URL, archive, MD5)
    try:
        with tarfile.open(archive) as members:
            for name in TRAIN + TEST:
                _unpack(members, name, root / FOLDER)
    except (tarfile.TarError, EOFError, KeyError) as error:
        raise damaged(archive, "a tar.gz file with the binary batches", str(error)) from error


def _unpack(members: tarfile.TarFile, name: str, folder: Path) -> None:
    """Take one file out by its name; no path that the archive states is followed."""
    member = members.extractfile(f"{FOLDER}/{name}")
    if member is None:
        raise KeyError(f"{name} is not a file")
    folder.mkdir(exist_ok=True)
    partial = folder / f"{name}.part"
    partial.write_bytes(member.read())
    partial.replace(folder / name)


def _split(folder: Path, names: tuple[str, ...]) -> Split:
    records = np.concatenate([_records(folder / name) for name in names])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return Split(images.contiguous(memory_format=torch.channels_last), torch.from_numpy(records[:, 0].astype(np.int64)))


def _records(path: Path) -> np.ndarray:
    content = np.frombuffer(read_bytes(path), dtype=np.uint8)
    if content.size % RECORD:
        raise damaged(path, f"whole records of {RECORD} bytes", f"{content.size} bytes")
    records = content.reshape(-1, RECORD)
    if records[:, 0].max() > 9:
        raise damaged(path, "labels of 0 to 9", f"a label of {records[:, 0].max()}")
    return records
