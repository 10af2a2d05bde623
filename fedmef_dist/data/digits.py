"""The 1,797 handwritten 8x8 digits that come with the package; ``digits.md`` beside them names source and licence."""

from pathlib import Path

import numpy as np
import torch

from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.files import damaged, read_bytes

DIGITS = Path(__file__).parent / "digits.csv.gz"


def load_digits(path: Path = DIGITS) -> Dataset:
    """Read the CSV file (64 values of 0..16 and a label on each line); pixels are scaled to 0..255.

    Every fifth image of each class is a test image, so the split is stratified and the same in every run.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        table = np.array([line.split(b",") for line in read_bytes(path).splitlines()], dtype=np.int64)
    except ValueError as error:
        raise damaged(path, "65 whole numbers a line", str(error)) from error
    if table.ndim != 2 or table.shape[1] != 65 or table.min() < 0 or table.max() > 16 or table[:, 64].max() > 9:
        raise damaged(path, "64 values of 0 to 16 and a label of 0 to 9 on each line", f"a table {table.shape}")
    images = torch.from_numpy((table[:, :64] * 255 + 8) // 16).to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].copy())
    test = _every_fifth_of_a_class(table[:, 64])
    train_split, test_split = Split(images[~test], labels[~test]), Split(images[test], labels[test])
    return Dataset("digits", train_split, test_split, 10, mean=(0.3052,), std=(0.3760,), pad=1, flip=False)


def _every_fifth_of_a_class(labels: np.ndarray) -> torch.Tensor:
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        chosen[np.flatnonzero(labels == label)[4::5]] = True
    return chosen
