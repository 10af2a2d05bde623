"""A data set made of arrays that somebody has in memory."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.images import channel_statistics

Layout = Literal["auto", "NHWC", "NCHW"]
_MOST_CHANNELS = 4
_MOST_CLASSES = 1 << 24  # more are not numbers of classes, but something else: times, identities
_MOST_PAD = 1 << 10


def image_dataset(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    owners: Any = None,
    test_owners: Any = None,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    pad: int = 0,
    flip: bool = False,
    layout: Layout = "auto",
) -> Dataset:
    """Images and labels as a run takes them, from numpy arrays, tensors or nested lists.

    Images are uint8, (N, H, W), (N, H, W, C) or (N, C, H, W). Floating point numbers must all lie in [0, 1]; they are
    multiplied by 255 and rounded. Any other type is refused, since its scale cannot be known.

    Args:
        name: of the data set, for messages.
        train: images and labels; labels are whole numbers from 0, (N,).
        test: the same.
        owners: (N,), whose each training sample is, numbers or words: the clients of ``partition.scheme: natural``.
        test_owners: the same of the test samples.
        classes: how many there are; None: the largest label of both splits, and one.
        mean: of each channel, for pixels in [0, 1]; None: that of the training images.
        std: the deviation, likewise.
        pad: border in pixels of the augmentation by random crops; 0: none.
        flip: whether a mirrored image is still one of its class.
        layout: where the channels stand in four dimensions; ``auto``: where the size is 1 to 4, last or second.

    Raises:
        UserError: something does not fit, with the argument's name.
    """
    _check_plain(name, classes, pad, layout)
    train_split, test_split = (_split(name, part, *data, layout) for part, data in (("train", train), ("test", test)))
    if train_split.images.shape[1:] != test_split.images.shape[1:]:
        shapes = " and ".join(str(tuple(split.images.shape[1:])) for split in (train_split, test_split))
        raise _wrong(name, "train, test", f"images of different shapes (C, H, W): {shapes}")
    known = 1 + max(int(split.labels.max()) for split in (train_split, test_split))
    if classes is not None and known > classes:
        raise _wrong(name, "classes", f"{classes} classes, but a label is {known - 1}")
    own, test_own = _owners(name, (owners, test_owners), (len(train_split), len(test_split)))
    found_mean, found_std = channel_statistics(train_split.images) if mean is None or std is None else ((), ())
    channels = train_split.images.shape[1]
    return Dataset(
        name,
        train_split,
        test_split,
        classes or known,
        mean=_per_channel(name, "mean", found_mean if mean is None else mean, channels),
        std=_per_channel(name, "std", found_std if std is None else std, channels),
        pad=pad,
        flip=flip,
        owners=own,
        test_owners=test_own,
    )


def _check_plain(name: str, classes: Any, pad: Any, layout: Any) -> None:
    """What is no array, of the type and in the range that it has to be."""
    if classes is not None and not isinstance(classes, int):
        raise _wrong(name, "classes", f"a whole number, or None; found {classes!r}")
    if not isinstance(pad, int) or not 0 <= pad <= _MOST_PAD:
        raise _wrong(name, "pad", f"pixels are a whole number, 0 to {_MOST_PAD}; found {pad!r}")
    if layout not in get_args(Layout):
        raise _wrong(name, "layout", f"one of {', '.join(get_args(Layout))}; found {layout!r}")


def _split(name: str, part: str, images: Any, labels: Any, layout: Layout) -> Split:
    pixels = _channels_last(name, part, _bytes(name, part, np.asarray(images)), layout)
    numbers = np.asarray(labels)
    if numbers.dtype.kind not in "iu" or numbers.shape != (len(pixels),) or not len(numbers):
        found = f"{numbers.dtype} {numbers.shape}"
        raise _wrong(name, part, f"labels are whole numbers, one for each of {len(pixels)} images; found {found}")
    if int(numbers.min()) < 0:
        raise _wrong(name, part, f"labels count from 0; found {numbers.min()}")
    if int(numbers.max()) >= _MOST_CLASSES:  # without a sign -1 is the largest number, and would be -1 again below
        raise _wrong(name, part, f"labels are numbers of classes, counted from 0; found {numbers.max()}")
    return Split(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(numbers.astype(np.int64)))


def _bytes(name: str, part: str, images: np.ndarray) -> np.ndarray:
    """The images as uint8."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise _wrong(name, part, f"images are uint8, or floating point in [0, 1]; found {images.dtype}")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        found = f"{images.min():g} to {images.max():g}"
        raise _wrong(name, part, f"floating point images lie in [0, 1]; found {found}: give uint8, or scale them")
    return np.rint(images * 255).astype(np.uint8)


def _channels_last(name: str, part: str, images: np.ndarray, layout: Layout) -> np.ndarray:
    """The images as a contiguous array (N, H, W, C) that may be written to."""
    if 0 in images.shape[1:]:
        raise _wrong(name, part, f"images without pixels: {images.shape}")
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim != 4:
        raise _wrong(name, part, f"images have the shape (N, H, W), (N, H, W, C) or (N, C, H, W); found {images.shape}")
    elif layout == "NCHW" or (layout == "auto" and _channels_are_second(name, part, images.shape)):
        images = images.transpose(0, 2, 3, 1)
    return np.require(images, requirements=["C", "W"])


def _channels_are_second(name: str, part: str, shape: tuple[int, ...]) -> bool:
    second, last = shape[1] <= _MOST_CHANNELS, shape[3] <= _MOST_CHANNELS
    if second == last:
        raise _wrong(name, part, f"images {shape}: which size is the channels? say layout='NHWC' or 'NCHW'")
    return second


def _owners(name: str, given: tuple[Any, Any], sizes: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
    """Owners numbered from 0 in the order of their names, those of both splits together."""
    arrays = [None if owners is None else np.asarray(owners) for owners in given]
    for argument, array, size in zip(("owners", "test_owners"), arrays, sizes, strict=True):
        if array is not None and (array.shape != (size,) or array.dtype.kind not in "iuUS"):
            found = f"{array.dtype} {array.shape}"
            raise _wrong(name, argument, f"a number or a word for each of {size} samples; found {found}")
    present = [array for array in arrays if array is not None]
    if not present:
        return None, None
    if len({array.dtype.kind in "iu" for array in present}) > 1:
        raise _wrong(name, "owners, test_owners", "numbers in one and words in the other")
    names = np.unique(np.concatenate(present))
    numbers = [None if array is None else torch.from_numpy(np.searchsorted(names, array)) for array in arrays]
    return numbers[0], numbers[1]


def _per_channel(name: str, argument: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = np.asarray(values)
    fits = numbers.shape == (channels,) and numbers.dtype.kind in "iuf" and bool(np.isfinite(numbers).all())
    if not fits or (argument == "std" and numbers.min() <= 0):
        wanted = "above 0, " if argument == "std" else ""
        raise _wrong(name, argument, f"a number {wanted}for each of {channels} channels; found {values}")
    return tuple(numbers.tolist())


def _wrong(name: str, argument: str, what: str) -> UserError:
    return UserError(what, where=f"data set {name}, {argument}", mend="see fedmef_dist.api.image_dataset")
