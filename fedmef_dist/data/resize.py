"""Images of another size: ``data.resize`` averages over areas, exactly, so that every machine gets the same pixels."""

from dataclasses import replace

import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.images import channel_statistics
from fedmef_dist.data.text import TextDataset

_CHUNK = 1 << 22  # pixels that are worked on at once, 32 MiB of float64


def resized(dataset: Dataset | TextDataset, side: int) -> Dataset:
    """The data set with images of ``side`` times ``side`` pixels.

    Mean and deviation are measured on the new training images, and the border of the augmentation shrinks or grows with
    the images, to the nearest whole pixel. A data set that has this size already stays as it is.

    Raises:
        UserError: the samples are text, or the images are not square.
    """
    shape = resized_shape(dataset.shape, side)
    assert isinstance(dataset, Dataset)
    if shape == dataset.shape:
        return dataset
    train, test = (Split(area_average(split.images, side), split.labels) for split in (dataset.train, dataset.test))
    mean, std = channel_statistics(train.images)
    pad = round(dataset.pad * side / dataset.shape[1])
    return replace(dataset, train=train, test=test, mean=mean, std=std, pad=pad, findings=None)


def resized_shape(shape: tuple[int, ...], side: int) -> tuple[int, ...]:
    """The shape of a sample, (channels, height, width), after :func:`resized`. Raises UserError as that does."""
    if len(shape) != 3:
        raise UserError("data.resize is for images, and the samples are text", where="data.resize", mend="set it null")
    channels, height, width = shape
    if height != width:
        raise UserError(
            f"data.resize is for square images, these have {height} x {width} pixels",
            where="data.resize",
            mend="set it null, or cut the images",
        )
    return channels, side, side


def area_average(images: Tensor, side: int) -> Tensor:
    """Images (N, C, H, H) as (N, C, side, side), both uint8; the result is channels_last.

    A new pixel is the mean of the area that it covers, rounded half to even; old pixels that lie in it in part count in
    part. The sums are whole numbers below 2 ** 53, so no order of summation changes a bit. 28 to 14 pixels is the mean
    of 2 x 2.
    """
    count, channels, height, _ = images.shape
    weights = _overlaps(height, side)
    result = torch.empty((count, side, side, channels), dtype=torch.uint8)
    step = max(1, _CHUNK // max(images[0].numel(), channels * side**2))  # an image may grow or shrink
    for old, new in zip(images.split(step), result.split(step), strict=True):
        sums = torch.einsum("yh,nchw,xw->nyxc", weights, old.double(), weights)
        new.copy_((sums / height**2).round_())
    return result.permute(0, 3, 1, 2)


def _overlaps(old: int, new: int) -> Tensor:
    """How much of each old pixel lies in each new one, float64 (new, old); in units that make each row sum to ``old``.

    An edge of ``old`` pixels is cut into ``old * new`` units: an old pixel has ``new`` of them, a new one ``old``.
    """
    start_new, start_old = torch.arange(new)[:, None] * old, torch.arange(old)[None, :] * new
    ends = torch.minimum(start_new + old, start_old + new)
    return (ends - torch.maximum(start_new, start_old)).clamp(min=0).double()
