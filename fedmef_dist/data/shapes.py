"""Shapes of the data sets' images, for what can be told of a run without its files."""

from typing import NamedTuple

from fedmef_dist.data.sources import DataSettings


class Shape(NamedTuple):
    """Images (channels, size, size) of so many classes."""

    channels: int
    size: int
    classes: int


_SHAPES = {"digits": Shape(1, 8, 10), "fashion_mnist": Shape(1, 28, 10), "cifar10": Shape(3, 32, 10)}


def shape_of(settings: DataSettings) -> Shape:
    """The shape that the data set's images have."""
    if settings.dataset == "synthetic":
        synthetic = settings.synthetic
        return Shape(synthetic.channels, synthetic.image_size, synthetic.classes)
    return _SHAPES[settings.dataset]
