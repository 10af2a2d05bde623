"""CINIC-10 (Darlow and others, 2018, arXiv 1810.03505): CIFAR-10 with images of ImageNet, a PNG file each."""

from pathlib import Path

from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.images import list_images, read_splits
from fedmef_dist.data.record import Reading
from fedmef_dist.data.walk import Walk

ARCHIVE = Archive(
    "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
    "6ee4d0c996905fe93221de577967a372",
    "CINIC-10",
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cinic10(root: Path, download: bool) -> Source:
    """``root/CINIC-10/{train,test}/<class>/*.png``, 32x32 pixels; the third part, ``valid``, is left aside.

    Raises:
        UserError: a folder is missing or holds something else, or the archive cannot be downloaded.
    """
    folder, walk = ARCHIVE.ensure(root, ("train", "test"), download), Walk()
    train, test = (list_images(folder / part, CLASSES, walk) for part in ("train", "test"))

    def read() -> Dataset:
        splits, kinds = read_splits(train, test, 32)
        mean, std = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)
        reading = Reading(files=kinds, class_names=CLASSES)
        return Dataset("cinic10", *splits, 10, mean, std, pad=4, flip=True, reading=reading)

    files = train.paths + test.paths
    return Source("cinic10", files, read, train_files=train.paths, test_files=test.paths, skipped=walk.skipped)
