"""The ``data`` section of a configuration, and the data set that it names."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestName, Kind, Options, is_guest, unknown_name
from fedmef_dist.base.names import home_expanded
from fedmef_dist.base.settings import Settings
from fedmef_dist.cluster.environment import detect
from fedmef_dist.data.arrays import ArraySettings, array_source, holds_tokens, load_tokens
from fedmef_dist.data.cache import Source, load_cached
from fedmef_dist.data.checks import checked, refuse_empty
from fedmef_dist.data.cifar import cifar10, cifar100
from fedmef_dist.data.cinic10 import cinic10
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.digits import load_digits
from fedmef_dist.data.fashion_mnist import fashion_mnist
from fedmef_dist.data.femnist import femnist
from fedmef_dist.data.folder import FolderSettings, image_folder
from fedmef_dist.data.guest import load_guest
from fedmef_dist.data.parquet import ParquetSettings, parquet_source
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.resize import resized
from fedmef_dist.data.shakespeare import load_shakespeare
from fedmef_dist.data.svhn import svhn
from fedmef_dist.data.synthetic import SyntheticSettings, load_synthetic
from fedmef_dist.data.text import TextDataset, TextSettings
from fedmef_dist.data.tiny_imagenet import tiny_imagenet
from fedmef_dist.data.tinystories import load_tinystories

# Data sets that are asked for and are not here under that name.
_ELSEWHERE = {
    "mnist": "did you mean fashion_mnist? digits are 8 x 8 images of digits; MNIST's own files can come as arrays or "
    "folder (docs/data.md)",
}


class DataSettings(Settings):
    """Which samples there are, where their files stand, and how they fall to the clients."""

    dataset: (
        Literal[
            "digits",
            "fashion_mnist",
            "cifar10",
            "cifar100",
            "cinic10",
            "tiny_imagenet",
            "svhn",
            "femnist",
            "folder",
            "arrays",
            "parquet",
            "shakespeare",
            "tinystories",
            "synthetic",
        ]
        | GuestName
    ) = Field(default="digits", description="the data set; package.module:Name for your own")
    options: Options = Field(default_factory=dict, description="keyword arguments for your own data set")
    root: str = Field(default="data", pattern=r"^[^\x00]+$", description="folder with the data sets' files")
    download: bool = Field(default=False, description="fetch missing files from the data set's own site")
    resize: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="side in pixels that square images are scaled to, by the mean over areas; null: as they are",
    )
    augment: bool = Field(
        default=True, description="crop and mirror training images at random, if the data set allows it"
    )
    partition: PartitionSettings = Field(default_factory=PartitionSettings, description="how samples fall to clients")
    folder: FolderSettings = Field(default_factory=FolderSettings, description="images for dataset: folder")
    arrays: ArraySettings = Field(default_factory=ArraySettings, description="files for dataset: arrays")
    parquet: ParquetSettings = Field(default_factory=ParquetSettings, description="files for dataset: parquet")
    text: TextSettings = Field(default_factory=TextSettings, description="samples of text data sets")
    synthetic: SyntheticSettings = Field(default_factory=SyntheticSettings, description="sizes for dataset: synthetic")

    @field_validator("dataset", mode="before")
    @classmethod
    def _is_known(cls, name: Any) -> Any:
        if isinstance(name, str) and name not in own_datasets() and not is_guest(Kind.DATASET, name):
            raise unknown_name(Kind.DATASET, name, own_datasets(), _ELSEWHERE)
        return name

    @model_validator(mode="after")
    def _options_are_for_guests(self) -> "DataSettings":
        if self.options and not self.is_guest:
            raise ValueError(f"options are for data sets of your own; {self.dataset} has keys of its own")
        return self

    @property
    def is_guest(self) -> bool:
        """Whether the data set comes from outside of the package."""
        return self.dataset not in own_datasets()


def own_datasets() -> tuple[str, ...]:
    """The names of the package's own data sets."""
    names, _ = get_args(DataSettings.model_fields["dataset"].annotation)
    return get_args(names)


def load_dataset(settings: DataSettings, seed: int) -> Dataset | TextDataset:
    """Both splits as uint8, in memory or mapped into it; only ``synthetic`` depends on ``seed``.

    The first rank of a node verifies the digest of what comes from the cache.

    Raises:
        UserError: a file is missing, damaged, or cannot be downloaded, the samples cannot be resized, the training
            images of a class, or all, are one constant, a split has no samples, or they have more than fits into
            memory; a guest cannot be had, or fails.
    """
    try:
        dataset = _load_dataset(settings, home_expanded(settings.root), seed)
    except (MemoryError, RuntimeError) as error:
        # Torch has no class of its own for memory that the system refuses; the message names the amount.
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            "the data set does not fit into this machine's memory",
            where=f"data.dataset={settings.dataset}",
            mend="take smaller images, or fewer samples",
        ) from error
    except OSError as error:
        # What the sources do not name themselves: a folder above the data that this user may not look into, a loop of
        # links, a name that is too long, a disk that fails.
        raise UserError(
            f"the data cannot be read: {error.strerror or error}",
            where=str(error.filename or settings.root),
            mend="mend data.root or its permissions",
        ) from error
    refuse_empty(dataset)
    return dataset


def _load_dataset(settings: DataSettings, root: Path, seed: int) -> Dataset | TextDataset:
    side = settings.resize
    if settings.is_guest:
        guest = load_guest(settings.dataset, settings.options, root)
        guest = guest if side is None else resized(guest, side)
        refuse_empty(guest)
        return checked(guest) if isinstance(guest, Dataset) else guest
    if settings.dataset in _UNCACHED or (settings.dataset == "arrays" and holds_tokens(root, settings.arrays)):
        dataset = _load(settings, root, seed)
        dataset = dataset if side is None else resized(dataset, side)
        # What is drawn from the seed has no faults, and may be large.
        if isinstance(dataset, TextDataset) or settings.dataset == "synthetic":
            return dataset
        return checked(dataset)
    source = _source(settings, root)
    if side is not None:
        # The cache holds the small images, so that the ranks of a node share them too.
        options, large = (*source.options, "resize", side), source.read
        source = replace(source, read=lambda: resized(large(), side), options=options)
    return load_cached(source, root, verify=detect(os.environ).local_rank == 0)


def _load(settings: DataSettings, root: Path, seed: int) -> Dataset | TextDataset:
    match settings.dataset:
        case "synthetic":
            return load_synthetic(settings.synthetic, seed)
        case "shakespeare":
            return load_shakespeare(root, settings.text.context)
        case "tinystories":
            return load_tinystories(root, settings.text)
        case "arrays":
            return load_tokens(root, settings.arrays)
    return load_digits()


def _source(settings: DataSettings, root: Path) -> Source:
    match settings.dataset:
        case "femnist":
            return femnist(root)
        case "folder":
            return image_folder(root, settings.folder)
        case "arrays":
            return array_source(root, settings.arrays)
        case "parquet":
            return parquet_source(root, settings.parquet)
    return _DOWNLOADABLE[settings.dataset](root, settings.download)


def sample_files(settings: DataSettings) -> tuple[Sequence[Path], Sequence[Path]]:
    """The files of the training and of the test samples, in their order; empty where samples are no files."""
    if settings.dataset not in _FILE_A_SAMPLE:
        return (), ()
    source = _source(settings, home_expanded(settings.root))
    return source.train_files, source.test_files


_FILE_A_SAMPLE = ("folder", "cinic10", "tiny_imagenet")
_UNCACHED = ("digits", "synthetic", "shakespeare", "tinystories")
_DOWNLOADABLE: dict[str, Callable[[Path, bool], Source]] = {
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cinic10": cinic10,
    "tiny_imagenet": tiny_imagenet,
    "svhn": svhn,
}
