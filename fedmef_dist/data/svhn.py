"""SVHN, cropped digits (Netzer and others, 2011), from its MATLAB files."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, exclusive, fetch, read_bytes
from fedmef_dist.data.mat import read_mat

URL = "http://ufldl.stanford.edu/housenumbers"
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}
FOLDER = "svhn"


def svhn(root: Path, download: bool) -> Source:
    """``root/svhn/{train,test}_32x32.mat``, format 5: ``X`` uint8 (32, 32, 3, n); ``y`` 1 to 10, where 10 is a zero.

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    folder = root / FOLDER
    for name, md5 in MD5.items():
        if not (folder / name).is_file():
            _obtain(folder, name, md5, download)

    def read() -> Dataset:
        train, test = (_split(folder / name) for name in MD5)
        mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
        return Dataset("svhn", train, test, 10, mean, std, pad=4, flip=False)

    return Source("svhn", [folder / name for name in MD5], read)


def _obtain(folder: Path, name: str, md5: str, download: bool) -> None:
    if not download:
        raise UserError(
            "a data file is missing",
            where=f"{folder / name}",
            mend=f"put it there (from {URL}/{name}), or set data.download=true",
        )
    with exclusive(folder):
        if not (folder / name).is_file():
            fetch(f"{URL}/{name}", folder / name, md5)


def _split(path: Path) -> Split:
    content = _read_mat(path)
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[:3] != (32, 32, 3):
        raise damaged(path, "images X, uint8 (32, 32, 3, n)", _describe(images))
    count = images.shape[3] if images.ndim == 4 else 0
    if not isinstance(labels, np.ndarray) or labels.size != count or labels.dtype.kind not in "iuf" or not count:
        raise damaged(path, f"{count or 'some'} labels y", _describe(labels))
    if not (labels.min() >= 1 and labels.max() <= 10 and (labels == np.floor(labels)).all()):  # NaN is nothing of it
        raise damaged(path, "whole labels of 1 to 10", f"labels of {labels.min()} to {labels.max()}")
    rows = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return Split(torch.from_numpy(rows).permute(0, 3, 1, 2), torch.from_numpy(labels.ravel().astype(np.int64) % 10))


def _read_mat(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    content = read_bytes(path)
    if not content.startswith(b"MATLAB 5.0 MAT-file"):
        raise damaged(path, "a MATLAB file of format 5", f"a start of {content[:19]!r}")
    try:
        return read_mat(content)
    except ValueError as error:
        raise damaged(path, "a whole MATLAB file of format 5", str(error)) from error


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else "none"
