"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017) from its idx files."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, fetch, read_bytes

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MD5 = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def fashion_mnist(root: Path, download: bool) -> Source:
    """The four idx files, plain or ``.gz``, from ``root/fashion_mnist`` or else from Debian's package.

    Garments fill the frame, so the crop moves them by two pixels at most.

    Raises:
        UserError: a file is missing or cannot be downloaded.
    """
    folder = _choose_folder(root / "fashion_mnist", download)

    def read() -> Dataset:
        train, test = (_split(folder, part) for part in ("train", "t10k"))
        return Dataset("fashion_mnist", train, test, 10, mean=(0.2860,), std=(0.3530,), pad=2, flip=True)

    return Source("fashion_mnist", [_locate(folder, name) for name in MD5], read)


def _choose_folder(own: Path, download: bool) -> Path:
    for folder in (own, DEBIAN_FOLDER):
        if all(_locate(folder, name).is_file() for name in MD5):
            return folder
    missing = [name for name in MD5 if not _locate(own, name).is_file()]
    if not download:
        raise UserError(
            f"fashion_mnist: {missing[0]}.gz is missing",
            where=f"{own} and {DEBIAN_FOLDER}",
            mend=f"put {', '.join(f'{name}.gz' for name in missing)} there, or set data.download=true",
        )
    for name in missing:
        fetch(f"{URL}/{name}.gz", own / f"{name}.gz", MD5[name])
    return own


def _locate(folder: Path, name: str) -> Path:
    """The plain file where it is there, or else the compressed one, there or not."""
    return folder / name if (folder / name).is_file() else folder / f"{name}.gz"


def _split(folder: Path, part: str) -> Split:
    image_path, label_path = (_locate(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1).to(torch.int64)
    if images.shape[1:] != (28, 28):
        raise damaged(image_path, "images of 28x28 pixels", f"a shape of {tuple(images.shape)}")
    if len(images) != len(labels) or labels.max() > 9:
        raise damaged(label_path, f"{len(images)} labels of 0 to 9", f"{len(labels)} labels up to {labels.max()}")
    return Split(images.unsqueeze(1), labels)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A uint8 tensor from an idx file: two zeros, type 8, the number of dimensions, big-endian sizes, then the values.

    Raises:
        UserError: the file is missing, empty, truncated or of another format.
    """
    content = read_bytes(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise damaged(path, f"an idx file of bytes in {dimensions} dimensions", f"a start of {content[:4].hex()}")
    shape = tuple(int(size) for size in np.frombuffer(content, dtype=">u4", count=dimensions, offset=4))
    if 0 in shape or len(content) - start != np.prod(shape, dtype=object):
        raise damaged(path, f"the values of a shape {shape}, at least one", f"{len(content) - start} bytes")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy())
