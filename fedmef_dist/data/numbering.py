"""Numbers for classes and natural clients, the same in both splits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.data.files import damaged


def number_clients(train: Sequence[str], test: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
    """Owners of the training and of the test samples, int64 (N,), from their names; numbers follow the sorted names."""
    # No array of names: each would take the room of the longest, and end before a last character 0.
    numbers = {name: number for number, name in enumerate(sorted({*train, *(test or ())}))}
    owners, test_owners = (
        None if names is None else torch.tensor([numbers[name] for name in names], dtype=torch.int64)
        for names in (train, test)
    )
    assert owners is not None
    return owners, test_owners


def members_of_labels(labels: np.ndarray) -> list[np.ndarray]:
    """The places of the samples of each label that there is, in the order of the labels, each int64 (n,) rising.

    By one sort: many thousand labels would each have all samples looked through.
    """
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def count_classes(path: Path, labels: np.ndarray, wanted: int | None, mend: str) -> int:
    """As many as are wanted, or else as many as there are among the labels of both splits, int64 (N,).

    Raises:
        UserError: a label is too large, or, where nobody says how many there are, some number below it has no sample:
            most likely the labels are something else.
    """
    known = np.unique(labels)
    if wanted is not None and known[-1] < wanted:
        return wanted
    if wanted is not None or len(known) < 2 or known[-1] != len(known) - 1:
        expected = "labels of two or more classes, from 0 without gaps" if wanted is None else f"labels below {wanted}"
        raise damaged(path, expected, f"{len(known)} labels, {known[0]} to {known[-1]}", mend)
    return len(known)
