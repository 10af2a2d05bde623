"""Image files in one folder a class: which there are, and their pixels."""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dataset import Split
from fedmef_dist.data.files import damaged

# By suffix and by content: a file of another kind is foreign, whatever its name says.
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
_REPLACE = "put a whole image of the right kind there, or take it away"
_TAKE_AWAY = "take it away, or give it its right name"
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")


@dataclass(frozen=True)
class Listing:
    """Image files in a fixed order and each one's label."""

    paths: list[Path]
    labels: list[int]


def class_names(folder: Path) -> list[str]:
    """The folder's subfolders, sorted: one a class. Raises UserError where the folder is missing or has none."""
    if not folder.is_dir():
        raise UserError(
            "a data folder is missing", where=str(folder), mend="put a folder of images for each class there"
        )
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise damaged(folder, "a folder of images for each class", "none", "put them there")
    return names


def list_images(folder: Path, classes: Sequence[str], inner: str = "") -> Listing:
    """All images below ``folder/<class>/<inner>``, at any depth, sorted; hidden files are passed over.

    Raises:
        UserError: a class is unknown, missing or empty, or a file is not an image by its name.
    """
    for name in class_names(folder):
        if name not in classes:
            raise damaged(folder / name, f"a class, one of {', '.join(classes)[:100]}", "another name", _TAKE_AWAY)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name / inner)
        paths += found
        labels += [label] * len(found)
    return Listing(paths, labels)


def image_files(folder: Path) -> list[Path]:
    """The images below a folder, sorted. Raises UserError where there is none, or a file of another kind."""
    names = [Path(parent, name) for parent, _, files in os.walk(folder) for name in files]
    paths = sorted(path for path in names if not path.name.startswith("."))
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise damaged(path, "an image", f"a file of another kind ({path.suffix or 'no suffix'})", _TAKE_AWAY)
    if not paths:
        raise damaged(folder, "images", "none", "put them there")
    return paths


def read_split(listing: Listing, side: int, crop: bool = False) -> Split:
    """Decode the images to red, green and blue; without ``crop`` each must be ``side`` pixels high and wide.

    With it, the shorter side is scaled to ``side`` pixels and the middle is cut out.

    Raises:
        UserError: a file is empty, truncated, not an image, or of another size.
    """
    pixels = np.empty((len(listing.paths), side, side, 3), dtype=np.uint8)
    for row, path in zip(pixels, listing.paths, strict=True):
        row[:] = _decode(path, side, crop)
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(listing.labels, dtype=torch.int64))


def _decode(path: Path, side: int, crop: bool) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            image = (ImageOps.exif_transpose(opened) if crop else opened).convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise damaged(path, "a whole image", str(error).replace(str(path), "it"), _REPLACE) from error
    if crop:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    if image.size != (side, side):
        raise damaged(path, f"an image of {side}x{side} pixels", f"{image.width}x{image.height}", _REPLACE)
    return np.asarray(image)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 images (N, C, H, W), for pixels scaled to [0, 1].

    They come from counts of the 256 values, so they are exact and take no memory. A constant channel has deviation 1.
    """
    means, deviations = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for chunk in images[:, channel].split(4096):
            counts += np.bincount(chunk.flatten().numpy(), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        deviation = np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(float(mean))
        deviations.append(float(deviation) or 1.0)
    return tuple(means), tuple(deviations)
