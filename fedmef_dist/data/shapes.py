"""Shapes of the data sets' images, for what can be told of a run without its files."""

from pathlib import Path
from typing import NamedTuple

from fedmef_dist.data.images import class_names
from fedmef_dist.data.sources import DataSettings


class Shape(NamedTuple):
    """Images (channels, size, size) of so many classes."""

    channels: int
    size: int
    classes: int


_SHAPES = {
    "digits": Shape(1, 8, 10),
    "fashion_mnist": Shape(1, 28, 10),
    "cifar10": Shape(3, 32, 10),
    "cifar100": Shape(3, 32, 100),
    "cinic10": Shape(3, 32, 10),
    "tiny_imagenet": Shape(3, 64, 200),
    "svhn": Shape(3, 32, 10),
    "femnist": Shape(1, 28, 62),
}


def shape_of(settings: DataSettings) -> Shape:
    """The shape that the data set's images have; only ``folder`` must be there, since its classes are its folders.

    Raises:
        UserError: the folder is missing.
    """
    if settings.dataset == "synthetic":
        synthetic = settings.synthetic
        return Shape(synthetic.channels, synthetic.image_size, synthetic.classes)
    if settings.dataset == "folder":
        folder = settings.folder
        classes = class_names(Path(settings.root).expanduser() / folder.path / folder.train)
        return Shape(3, folder.image_size, len(classes))
    return _SHAPES[settings.dataset]
