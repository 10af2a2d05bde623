"""Shapes of the data sets' samples, for what can be told of a run without its files."""

from pathlib import Path
from typing import NamedTuple

from fedmef_dist.data.images import class_names
from fedmef_dist.data.resize import resized_shape
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.data.walk import Walk


class Shape(NamedTuple):
    """What a model takes and gives: a sample's shape, (channels, height, width) or (context,), and so many classes."""

    sample: tuple[int, ...]
    classes: int

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens."""
        return len(self.sample) == 1


_SHAPES = {
    "digits": Shape((1, 8, 8), 10),
    "fashion_mnist": Shape((1, 28, 28), 10),
    "cifar10": Shape((3, 32, 32), 10),
    "cifar100": Shape((3, 32, 32), 100),
    "cinic10": Shape((3, 32, 32), 10),
    "tiny_imagenet": Shape((3, 64, 64), 200),
    "svhn": Shape((3, 32, 32), 10),
    "femnist": Shape((1, 28, 28), 62),
}


def shape_of(settings: DataSettings) -> Shape:
    """The shape that the data set's samples have.

    Files must be there only for what they decide: the classes of ``folder`` and whether its images are grey, the
    characters of a text, all of ``arrays`` and ``parquet``, and all that a guest loads.

    Raises:
        UserError: they are missing, or the samples cannot be resized.
    """
    shape = _stored_shape(settings)
    return shape if settings.resize is None else Shape(resized_shape(shape.sample, settings.resize), shape.classes)


def _stored_shape(settings: DataSettings) -> Shape:
    if settings.is_guest:
        guest = load_dataset(settings, seed=0)
        return Shape(guest.shape, guest.classes)
    match settings.dataset:
        case "synthetic":
            synthetic = settings.synthetic
            return Shape((synthetic.channels, synthetic.image_size, synthetic.image_size), synthetic.classes)
        case "folder":
            folder = settings.folder
            if folder.channels == "auto":
                return _loaded_shape(settings)
            classes = class_names(Path(settings.root).expanduser() / folder.path / folder.train, Walk())
            return Shape((folder.channels, folder.image_size, folder.image_size), len(classes))
        case "arrays" | "parquet" | "shakespeare" | "tinystories":
            return _loaded_shape(settings)
    return _SHAPES[settings.dataset]


def _loaded_shape(settings: DataSettings) -> Shape:
    dataset = load_dataset(settings.model_copy(update={"resize": None}), seed=0)
    return Shape(dataset.shape, dataset.classes)
