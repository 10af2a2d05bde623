"""The ``data`` section of a configuration, and the data set that it names."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedmef_dist.base.names import home_expanded
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.cache import Source, load_cached
from fedmef_dist.data.cifar import cifar10, cifar100
from fedmef_dist.data.cinic10 import cinic10
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.digits import digits_path, load_digits
from fedmef_dist.data.fashion_mnist import fashion_mnist
from fedmef_dist.data.femnist import femnist
from fedmef_dist.data.folder import FolderSettings, image_folder
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.shakespeare import load_shakespeare
from fedmef_dist.data.svhn import svhn
from fedmef_dist.data.synthetic import SyntheticSettings, load_synthetic
from fedmef_dist.data.text import TextDataset, TextSettings
from fedmef_dist.data.tiny_imagenet import tiny_imagenet
from fedmef_dist.data.tinystories import load_tinystories


class DataSettings(Settings):
    """Which samples there are, where their files stand, and how they fall to the clients."""

    dataset: Literal[
        "digits",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "cinic10",
        "tiny_imagenet",
        "svhn",
        "femnist",
        "folder",
        "shakespeare",
        "tinystories",
        "synthetic",
    ] = Field(default="digits", description="the data set")
    root: str = Field(default="data", min_length=1, description="folder with the data sets' files")
    download: bool = Field(default=False, description="fetch missing files from the data set's own site")
    augment: bool = Field(
        default=True, description="crop and mirror training images at random, where the data set allows it"
    )
    partition: PartitionSettings = Field(default_factory=PartitionSettings, description="how samples fall to clients")
    folder: FolderSettings = Field(default_factory=FolderSettings, description="images for dataset: folder")
    text: TextSettings = Field(default_factory=TextSettings, description="samples of text data sets")
    synthetic: SyntheticSettings = Field(default_factory=SyntheticSettings, description="sizes for dataset: synthetic")


def load_dataset(settings: DataSettings, seed: int) -> Dataset | TextDataset:
    """Both splits as uint8, in memory or mapped into it; only ``synthetic`` depends on ``seed``.

    Raises:
        UserError: a file is missing, damaged, or cannot be downloaded.
    """
    root = home_expanded(settings.root)
    match settings.dataset:
        case "digits":
            return load_digits(digits_path())
        case "synthetic":
            return load_synthetic(settings.synthetic, seed)
        case "shakespeare":
            return load_shakespeare(root, settings.text.context)
        case "tinystories":
            return load_tinystories(root, settings.text)
    return load_cached(_source(settings, root), root)


def _source(settings: DataSettings, root: Path) -> Source:
    match settings.dataset:
        case "femnist":
            return femnist(root)
        case "folder":
            return image_folder(root, settings.folder)
    return _DOWNLOADABLE[settings.dataset](root, settings.download)


_DOWNLOADABLE: dict[str, Callable[[Path, bool], Source]] = {
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "cinic10": cinic10,
    "tiny_imagenet": tiny_imagenet,
    "svhn": svhn,
}
