"""Data sets from outside of the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import Kind, call, find
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.text import TextDataset


def load_guest(name: str, options: Mapping[str, Any], root: Path) -> Dataset | TextDataset:
    """What a guest loads; every rank calls it for itself and must get the same.

    Args:
        name: of a callable ``(root: Path, **options) -> Dataset | TextDataset``.
        options: what it is called with, in addition to ``root``.
        root: ``data.root``.

    Raises:
        UserError: there is no such guest, it fails, or gives something else.
    """
    loader = find(Kind.DATASET, name, "data.dataset")
    dataset = call(name, loader, "data.options", options, {"root": root})
    if not isinstance(dataset, Dataset | TextDataset):
        raise UserError(
            f"{name} gave a {type(dataset).__name__}, not a data set",
            where="data.dataset",
            mend="return what fedmef_dist.api.image_dataset or text_dataset gives",
        )
    return dataset
