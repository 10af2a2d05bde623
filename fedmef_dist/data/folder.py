"""Any folder of images with one subfolder a class."""

from pathlib import Path

from pydantic import Field

from fedmef_dist.base.settings import Settings
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.files import damaged
from fedmef_dist.data.images import Listing, channel_statistics, class_names, list_images, read_split


class FolderSettings(Settings):
    """Section ``data.folder``: where the images of ``dataset: folder`` are, and how they are cut."""

    path: str = Field(default="images", min_length=1, description="the folder, below data.root unless absolute")
    train: str = Field(default="train", description="its folder of training images; empty: the folder itself")
    test: str | None = Field(
        default="test", description="its folder of test images; null: every fifth training image of a class"
    )
    image_size: int = Field(
        default=64, ge=4, le=4096, description="images are scaled to this shorter side in pixels and cut to a square"
    )
    flip: bool = Field(default=True, description="a mirrored image is still an image of its class")


def image_folder(root: Path, settings: FolderSettings) -> Source:
    """``<train>/<class>/...`` and ``<test>/<class>/...`` of any common image format; classes are sorted by name.

    Mean and deviation for the normalisation are those of the training images.

    Raises:
        UserError: a folder is missing or holds something else.
    """
    folder = root / settings.path
    classes = class_names(folder / settings.train)
    if len(classes) < 2:
        raise damaged(folder / settings.train, "folders of at least two classes", f"only {classes[0]}")
    train = list_images(folder / settings.train, classes)
    if settings.test is None:
        train, test = _hold_out(train)
    else:
        test = list_images(folder / settings.test, classes)

    def read() -> Dataset:
        train_split, test_split = (read_split(part, settings.image_size, crop=True) for part in (train, test))
        mean, std = channel_statistics(train_split.images)
        return Dataset(
            "folder", train_split, test_split, len(classes), mean, std, pad=settings.image_size // 8, flip=settings.flip
        )

    return Source("folder", train.paths + test.paths, read, options=tuple(settings.model_dump().values()))


def _hold_out(listing: Listing) -> tuple[Listing, Listing]:
    """The images but every fifth of a class, and these."""
    seen: dict[int, int] = {}
    parts = Listing([], []), Listing([], [])
    for path, label in zip(listing.paths, listing.labels, strict=True):
        seen[label] = seen.get(label, 0) + 1
        part = parts[seen[label] % 5 == 0]
        part.paths.append(path)
        part.labels.append(label)
    if not parts[1].paths:
        raise damaged(listing.paths[0].parent, "at least five images of a class, to hold one out for the test", "fewer")
    return parts
