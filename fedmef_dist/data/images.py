"""Image files in one folder a class: which there are, and their pixels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dataset import Split
from fedmef_dist.data.digest import in_chunks
from fedmef_dist.data.files import damaged
from fedmef_dist.data.pixels import REPLACE, SUFFIXES, Picture, is_grey, read_image
from fedmef_dist.data.walk import Walk

Channels = Literal[1, 3, "auto"]
_KINDS = 30
_TAKE_AWAY = "take it away, or give it its right name"


@dataclass(frozen=True)
class Listing:
    """Image files in a fixed order and each one's label."""

    paths: list[Path]
    labels: list[int]


def class_names(folder: Path, walk: Walk) -> list[str]:
    """The folder's subfolders, sorted: one a class. Raises UserError where the folder is missing or has none."""
    if not folder.is_dir():
        raise UserError(
            "a data folder is missing", where=str(folder), mend="put a folder of images for each class there"
        )
    names = walk.folders(folder)
    if not names:
        raise damaged(folder, "a folder of images for each class", "none", "put them there")
    return names


def list_images(folder: Path, classes: Sequence[str], walk: Walk, inner: str = "") -> Listing:
    """All images below ``folder/<class>/<inner>``, at any depth, sorted.

    Raises:
        UserError: a class is unknown, missing or empty, or a file is not an image by its name.
    """
    for name in class_names(folder, walk):
        if name not in classes:
            raise damaged(folder / name, f"a class, one of {', '.join(classes)[:100]}", "another name", _TAKE_AWAY)
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = image_files(folder / name / inner, walk)
        paths += found
        labels += [label] * len(found)
    return Listing(paths, labels)


def image_files(folder: Path, walk: Walk) -> list[Path]:
    """The images below a folder, sorted. Raises UserError where there is none, or a file of another kind."""
    if not folder.is_dir():
        raise damaged(folder, "a folder of images", "none", "put it there")
    paths = walk.files(folder)
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise damaged(path, "an image", f"a file of another kind ({path.suffix or 'no suffix'})", _TAKE_AWAY)
    if not paths:
        raise damaged(folder, "images", "none", "put them there")
    return paths


def read_splits(
    train: Listing, test: Listing, side: int, channels: Channels = 3, crop: bool = False
) -> tuple[tuple[Split, Split], dict[str, int]]:
    """Decode the images of both parts; without ``crop`` each must be ``side`` pixels high and wide.

    With it, the shorter side is scaled to ``side`` pixels and the middle is cut out. ``auto`` gives one channel where
    every image is grey, and three otherwise.

    Returns:
        Both splits, and how many files there were of each kind.

    Raises:
        UserError: a file is empty, truncated, not an image, of another size, or of levels without a maximum.
    """
    kinds: Counter[str] = Counter()
    depth = 1 if channels == 1 else 3
    decoded = [_pixels(part.paths, side, depth, crop, kinds) for part in (train, test)]
    decoded = as_grey(decoded) if channels == "auto" else decoded
    return (_split(decoded[0], train), _split(decoded[1], test)), summary(kinds)


def _split(pixels: np.ndarray, listing: Listing) -> Split:
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor(listing.labels, dtype=torch.int64))


def summary(kinds: Counter[str]) -> dict[str, int]:
    """The commonest kinds; images of many sizes would fill pages."""
    shown = dict(kinds.most_common(_KINDS))
    rest = kinds.total() - sum(shown.values())
    return {**shown, "others": rest} if rest else shown


def _pixels(paths: Sequence[Path], side: int, channels: int, crop: bool, kinds: Counter[str]) -> np.ndarray:
    pixels = np.empty((len(paths), side, side, channels), dtype=np.uint8)
    for row, path in zip(pixels, paths, strict=True):
        image, kind = read_image(path, channels)
        kinds[kind] += 1
        row[:] = fit(image, path, side, crop).reshape(row.shape)
    return pixels


def as_grey(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One channel of the images, uint8 (N, H, W, 3), where red, green and blue are the same in all; else all three."""
    if all(is_grey(image) for pixels in parts for image in pixels):
        return [np.ascontiguousarray(pixels[..., :1]) for pixels in parts]
    return list(parts)


def fit(image: Picture, path: Path, side: int, crop: bool) -> np.ndarray:
    """The pixels of an image of ``side`` times ``side``, or else ``crop`` scales and cuts it. Raises UserError."""
    from PIL import Image, ImageOps

    if crop:
        image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    if image.size != (side, side):
        raise damaged(path, f"an image of {side}x{side} pixels", f"{image.width}x{image.height}", REPLACE)
    return np.asarray(image)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of uint8 images (N, C, H, W), for pixels scaled to [0, 1].

    They come from counts of the 256 values, so they are exact and take no memory. A constant channel has deviation 1.
    """
    means, deviations = [], []
    values = np.arange(256) / 255
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for chunk in in_chunks(images[:, channel]):
            counts += np.bincount(chunk.flatten().numpy(), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        deviation = np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum())
        means.append(float(mean))
        deviations.append(float(deviation) or 1.0)
    return tuple(means), tuple(deviations)
