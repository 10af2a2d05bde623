"""Batches by index and vectorised augmentation: no data loader, no worker processes, no Python per sample.

Images are worked on as (samples, height, width, channels), the memory order of a channels_last tensor, so that a batch
leaves as channels_last without another copy. They are gathered with ``index_select``, which copies whole rows; indexing
with brackets copies bytes one at a time and takes several times as long. Random numbers are drawn on the CPU: every
device gets the same batches.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_border

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.base.transfer import brought
from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.data.text import TextDataset, TextSplit

Batch = tuple[Tensor, Tensor]
Count = TypeVar("Count", int, np.ndarray)


def steps_per_epoch(samples: Count, batch_size: int) -> Count:
    """Batches in one pass over ``samples``, a number or int64 (n,); the last one may be smaller."""
    return -(-samples // batch_size)


def client_batches(
    dataset: Dataset | TextDataset,
    indices: np.ndarray,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    round: int,
    client: int,
    augment: bool,
    device: torch.device | str,
) -> Iterator[Batch]:
    """The training batches of one client in one round, in a new order in each epoch.

    Yields images, float32 (B, C, H, W), channels_last, normalised, and labels, int64 (B,), both on ``device``; or of
    text, tokens and the tokens behind them, both int64 (B, context). The client's images are gathered once and stay on
    ``device`` as uint8 until the iterator ends. With ``augment`` each image is cropped at random from itself with a
    border of zero pixels, and mirrored with probability 1/2, as far as the data set allows; the order of the samples is
    the same with and without it.
    """
    samples: _Windows | _Crops
    if isinstance(dataset, TextDataset):
        samples = _Windows(dataset.train, indices, device)
    else:
        samples = _Crops(dataset, indices, augment, device)
    order_generator = torch_generator(seed, "order", round, client)
    crop_generator = torch_generator(seed, "crop", round, client) if augment else None
    for _ in range(epochs):
        order = brought(torch.randperm(len(indices), generator=order_generator), device)
        if crop_generator is not None:
            samples.draw(crop_generator)
        for rows in order.split(batch_size):
            yield samples.take(rows)


def evaluation_batches(
    split: Split | TextSplit,
    dataset: Dataset | TextDataset,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    device: torch.device | str,
) -> Iterator[Batch]:
    """One rank's share of the split, in fixed batches: batch ``b`` belongs to rank ``b % world_size``.

    Yields what :func:`client_batches` yields, without augmentation.
    """
    for start in range(rank * batch_size, len(split), world_size * batch_size):
        rows = slice(start, start + batch_size)
        if isinstance(split, TextSplit):
            inputs, targets = split.windows(split.starts[rows])
            yield inputs.to(device), targets.to(device)
        else:
            assert isinstance(dataset, Dataset)
            yield normalise(dataset, _pixel_rows(split.images[rows]).to(device)), split.labels[rows].to(device)


def normalise(dataset: Dataset, images: Tensor) -> Tensor:
    """uint8 (B, H, W, C) to float32 (B, C, H, W), channels_last: pixels over 255, less the mean, over the deviation."""
    factor, shift = _factor_and_shift(dataset.mean, dataset.std, images.shape[1] * images.shape[2], images.device)
    pixels = images.reshape(len(images), -1).to(torch.float32)
    return pixels.mul_(factor).add_(shift).view(images.shape).permute(0, 3, 1, 2)


@lru_cache(maxsize=8)
def _factor_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], pixels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both float32 (pixels * C,): one a pixel, since a broadcast over a few channels would run in tiny inner loops."""
    deviations = torch.tensor(std, dtype=torch.float64)
    shift = -torch.tensor(mean, dtype=torch.float64) / deviations
    factor = 1 / (255 * deviations)
    return factor.repeat(pixels).to(device, torch.float32), shift.repeat(pixels).to(device, torch.float32)


def _pixel_rows(images: Tensor) -> Tensor:
    """(N, C, H, W) as contiguous (N, H, W, C); a view where the images are channels_last, as data sets keep them."""
    return images.permute(0, 2, 3, 1).contiguous()


class _Windows:
    """A client's windows of a text."""

    def __init__(self, split: TextSplit, indices: np.ndarray, device: torch.device | str) -> None:
        self.split = split
        self.starts = split.starts[brought(torch.from_numpy(indices), split.starts.device)]
        self.device = device

    def draw(self, generator: torch.Generator) -> None:
        """Nothing: text is not augmented."""

    def take(self, rows: Tensor) -> Batch:
        """Tokens and the tokens behind them, int64 (B, context)."""
        inputs, targets = self.split.windows(self.starts[rows.to(self.starts.device)])
        return inputs.to(self.device), targets.to(self.device)


class _Crops:
    """A client's images, uint8 (n, H, W, C), each seen through a window and perhaps a mirror drawn once an epoch.

    The images, followed by their mirror images where wanted, get a border of zeros. A crop is then a start in memory,
    and ``windows`` the view that has one entry (H, W * C) for every start.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, augment: bool, device: torch.device | str) -> None:
        chosen = brought(torch.from_numpy(indices), dataset.train.images.device)
        images = _pixel_rows(dataset.train.images).index_select(0, chosen).to(device)
        self.dataset, self.labels = dataset, dataset.train.labels[chosen].to(device)
        self.shape = images.shape
        self.border = dataset.pad if augment else 0
        self.mirrored = augment and dataset.flip
        images = torch.cat([images, images.flip(2)]) if self.mirrored else images
        border = (self.border, self.border)
        images = pad_border(images, (0, 0, *border, *border)) if self.border else images
        count, height, width, channels = self.shape
        self.lines, self.line = images.shape[1:3]
        starts = images.numel() // channels - (height - 1) * self.line - (width - 1)
        self.windows = images.as_strided((starts, height, width * channels), (channels, self.line * channels, 1))
        self.start = torch.arange(count, device=images.device) * (self.lines * self.line)

    def draw(self, generator: torch.Generator) -> None:
        """Draw each image's window and mirror for the coming epoch."""
        sample = torch.arange(self.shape[0])
        top, left = torch.randint(2 * self.border + 1, (2, len(sample)), generator=generator)
        if self.mirrored:
            sample += len(sample) * torch.randint(2, sample.shape, generator=generator)
        self.start = brought((sample * self.lines + top) * self.line + left, self.windows.device)

    def take(self, rows: Tensor) -> Batch:
        """The epoch's crops of these images, normalised, and their labels."""
        crops = self.windows.index_select(0, self.start[rows]).view(len(rows), *self.shape[1:])
        return normalise(self.dataset, crops), self.labels[rows]
