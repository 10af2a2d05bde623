"""Natural clients by name: each sample's client as a number, the same number in both splits."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def number_clients(train: Sequence[str], test: Sequence[str] | None) -> tuple[Tensor, Tensor | None]:
    """Owners of the training and of the test samples, int64 (N,), from their names; numbers follow the sorted names."""
    names, numbers = np.unique(np.array([*train, *(test or ())]), return_inverse=True)
    del names
    owners = torch.from_numpy(numbers.astype(np.int64))
    return owners[: len(train)].clone(), None if test is None else owners[len(train) :].clone()
