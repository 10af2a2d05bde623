"""CINIC-10 (Darlow and others, 2018, arXiv 1810.03505): CIFAR-10 with images of ImageNet, a PNG file each."""

from pathlib import Path

from fedmef_dist.data.archives import Archive
from fedmef_dist.data.cache import Source
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.images import list_images, read_split

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
    folder = ARCHIVE.ensure(root, ("train", "test"), download)
    train, test = (list_images(folder / part, CLASSES) for part in ("train", "test"))

    def read() -> Dataset:
        mean, std = (0.4789, 0.4723, 0.4305), (0.2421, 0.2383, 0.2587)
        return Dataset("cinic10", read_split(train, 32), read_split(test, 32), 10, mean, std, pad=4, flip=True)

    return Source("cinic10", train.paths + test.paths, read)
