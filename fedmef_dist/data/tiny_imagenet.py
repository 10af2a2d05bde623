"""TinyImageNet: 200 classes of ImageNet in 64x64 pixels, a JPEG file each."""

from pathlib import Path

from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.files import damaged, read_bytes
from fedmef_dist.data.images import Listing, image_files, list_images, read_split

ARCHIVE = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)
SIDE = 64


def tiny_imagenet(root: Path, download: bool) -> Source:
    """``root/tiny-imagenet-200``: ``wnids.txt`` names the classes of ``train/<class>/images`` and ``val/images``.

    The labelled part ``val`` is the test split, as is usual: the part ``test`` has no labels.

    Raises:
        UserError: a file or folder is missing or holds something else, or the archive cannot be downloaded.
    """
    labels = "val/val_annotations.txt"
    folder = ARCHIVE.ensure(root, ("wnids.txt", "train", "val/images", labels), download)
    classes = sorted(read_bytes(folder / "wnids.txt").decode(errors="replace").split())
    train, test = (
        list_images(folder / "train", classes, "images"),
        _list_labelled(folder / labels, folder / "val/images", classes),
    )

    def read() -> Dataset:
        mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
        splits = read_split(train, SIDE), read_split(test, SIDE)
        return Dataset("tiny_imagenet", *splits, len(classes), mean, std, pad=8, flip=True)

    return Source("tiny_imagenet", [folder / "wnids.txt", folder / labels, *train.paths, *test.paths], read)


def _list_labelled(annotations: Path, images: Path, classes: list[str]) -> Listing:
    """Lines of a file's name, its class and four more fields, separated by tabs; one for every image."""
    label = {name: number for number, name in enumerate(classes)}
    given: dict[str, int] = {}
    for line in read_bytes(annotations).decode(errors="replace").splitlines():
        name, _, rest = line.partition("\t")
        kind = rest.partition("\t")[0]
        if kind not in label:
            raise damaged(annotations, "an image and its class on each line, separated by a tab", repr(line[:60]))
        given[name] = label[kind]
    paths = image_files(images)
    for path in paths:
        if path.name not in given:
            raise damaged(annotations, f"a line for {path.name}", "none")
    if len(paths) != len(given):
        raise damaged(images, f"the {len(given)} images of {annotations.name}", f"{len(paths)}")
    return Listing(paths, [given[path.name] for path in paths])
