"""A data set of one's own: numpy arrays, and whose each image is."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedmef_dist.api import Dataset, image_dataset

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def load(root: Path, *, writers: int = 8, images: int = 20) -> Dataset:
    """Horizontal and vertical stripes; every writer has a contrast of its own, and prefers one of the two.

    What lies in files would be read from ``root``, for example with ``np.load(root / "images.npy")``.
    """
    train, test = _stripes(writers, images, seed=0), _stripes(writers, 5, seed=1)
    return image_dataset("stripes", train=train[:2], test=test[:2], owners=train[2], test_owners=test[2], classes=2)


def _stripes(writers: int, images: int, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    owners = np.repeat(np.arange(writers), images)
    labels = (generator.random(owners.size) < np.where(owners % 2, 0.7, 0.3)).astype(np.int64)
    stripes = (
        (np.arange(8) + generator.integers(0, 4, (owners.size, 1))) // 2 % 2 * (64 + 128 * owners / writers)[:, None]
    )
    rows = np.repeat(stripes[:, :, None], 8, axis=2)
    noisy = np.where(labels[:, None, None], rows, rows.swapaxes(1, 2)) + generator.integers(0, 64, rows.shape)
    return noisy.astype(np.uint8), labels, owners
