"""FEMNIST as TensorFlow Federated keeps it: HDF5, in ``examples/<writer>`` the arrays ``pixels`` and ``label``."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.files import damaged, open_regular
from fedmef_dist.data.leaf import Writing, checked_writing


def read_examples(paths: Sequence[Path], pixels: int, classes: int) -> tuple[list[Writing], dict[str, int]]:
    """All writers with samples, and what was passed over: writers without samples.

    Raises:
        UserError: h5py is not installed, a file is of another kind, or no writer has a sample.
    """
    try:
        import h5py
    except ImportError:
        raise UserError("HDF5 files need h5py", where=str(paths[0]), mend="pip install h5py") from None
    skipped: Counter[str] = Counter()
    found = []
    for path in paths:
        try:
            with open_regular(path) as opened, h5py.File(opened, "r") as file:
                found += list(_of_file(file, path, pixels, classes, skipped))
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise damaged(path, "a whole HDF5 file with examples/<writer>/{pixels,label}", str(error)[:100]) from error
    if not found:
        raise damaged(paths[0], "at least one writer with a sample", "none")
    return found, dict(skipped)


def _of_file(file: Any, path: Path, pixels: int, classes: int, skipped: Counter[str]) -> Iterator[Writing]:
    for writer, samples in file["examples"].items():
        labels = np.asarray(samples["label"][()], dtype=np.float64)
        if not labels.size:
            skipped["writers without samples"] += 1
            continue
        values = np.asarray(samples["pixels"][()], dtype=np.float64)
        yield checked_writing(path, writer, values.reshape(len(values), -1), labels, pixels, classes)
