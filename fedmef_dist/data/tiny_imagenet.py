"""TinyImageNet: 200 classes of ImageNet in 64x64 pixels, a JPEG file each."""

from pathlib import Path

from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.files import damaged, read_bytes
from fedmef_dist.data.images import Listing, image_files, list_images, read_splits
from fedmef_dist.data.record import Reading
from fedmef_dist.data.walk import Walk

ARCHIVE = Archive(
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", "tiny-imagenet-200"
)
SIDE = 64
LABELS = "val/val_annotations.txt"


def tiny_imagenet(root: Path, download: bool) -> Source:
    """``root/tiny-imagenet-200``: ``wnids.txt`` names the classes of ``train/<class>/images`` and ``val/images``.

    The labelled part ``val`` is the test split, as is usual: the part ``test`` has no labels. It is also read where a
    script has sorted it into folders of the classes, ``val/<class>/`` or ``val/<class>/images``.

    Raises:
        UserError: a file or folder is missing or holds something else, or the archive cannot be downloaded.
    """
    folder, walk = ARCHIVE.ensure(root, ("wnids.txt", "train", "val"), download), Walk()
    classes = sorted(read_bytes(folder / "wnids.txt").decode("utf-8-sig", errors="replace").split())
    if len(set(classes)) < len(classes):
        raise damaged(folder / "wnids.txt", "every class once", "one that stands twice")
    train = list_images(folder / "train", classes, walk, "images")
    is_sorted = set(classes) & set(Walk().folders(folder / "val"))
    if is_sorted:
        test, labels = list_images(folder / "val", classes, walk), []
    else:
        test, labels = _list_labelled(folder / LABELS, folder / "val/images", classes, walk), [folder / LABELS]

    def read() -> Dataset:
        splits, kinds = read_splits(train, test, SIDE)
        mean, std = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
        reading = Reading(files=kinds, class_names=tuple(classes))
        return Dataset("tiny_imagenet", *splits, len(classes), mean, std, pad=8, flip=True, reading=reading)

    return Source(
        "tiny_imagenet",
        [folder / "wnids.txt", *labels, *train.paths, *test.paths],
        read,
        train_files=train.paths,
        test_files=test.paths,
        skipped=walk.skipped,
    )


def _list_labelled(annotations: Path, images: Path, classes: list[str], walk: Walk) -> Listing:
    """Lines of a file's name, its class and four more fields, separated by tabs; one for every image."""
    label = {name: number for number, name in enumerate(classes)}
    given: dict[str, int] = {}
    for line in read_bytes(annotations).decode("utf-8-sig", errors="replace").splitlines():
        name, _, rest = line.partition("\t")
        kind = rest.partition("\t")[0]
        if not line.strip():
            continue
        if kind not in label:
            raise damaged(annotations, "an image and its class on each line, separated by a tab", repr(line[:60]))
        if given.setdefault(name, label[kind]) != label[kind]:
            raise damaged(annotations, f"one class for {name[:60]}", "two")
    paths = image_files(images, walk)
    for path in paths:
        if path.name not in given:
            raise damaged(annotations, f"a line for {path.name}", "none")
    if len(paths) != len(given):
        raise damaged(images, f"the {len(given)} images of {annotations.name}", f"{len(paths)}")
    return Listing(paths, [given[path.name] for path in paths])
