"""Batches by index and vectorised augmentation: no data loader, no worker processes, no Python per sample.

Images are worked on as (samples, height, width * channels), the memory order of a channels_last tensor, so that a batch
leaves as channels_last without another copy. Random numbers are drawn on the CPU: every device gets the same batches.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_border

from fedmef_dist.data.dataset import Dataset, Split
from fedmef_dist.randomness import torch_generator

Batch = tuple[Tensor, Tensor]


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches in one pass over ``samples``; the last one may be smaller."""
    return -(-samples // batch_size)


def client_batches(
    dataset: Dataset,
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

    Yields images, float32 (B, C, H, W), channels_last, normalised, and labels, int64 (B,), both on ``device``. The
    client's images are gathered once and stay on ``device`` as uint8 until the iterator ends. With ``augment`` each
    image is cropped at random from itself with a border of zero pixels, and mirrored with probability 1/2, as far as
    the data set allows; the order of the samples is the same with and without it.
    """
    chosen = torch.from_numpy(indices).to(dataset.train.images.device)
    labels = dataset.train.labels[chosen].to(device)
    crops = _Crops(dataset, dataset.train.images[chosen].to(device), augment)
    normalise = _Normalise(dataset, device)
    order_generator = torch_generator(seed, "order", round, client)
    crop_generator = torch_generator(seed, "crop", round, client)
    for _ in range(epochs):
        order = torch.randperm(len(indices), generator=order_generator).to(device)
        crops.draw(crop_generator)
        for rows in order.split(batch_size):
            yield normalise(crops.take(rows)), labels[rows]


def evaluation_batches(
    split: Split, dataset: Dataset, *, batch_size: int, rank: int, world_size: int, device: torch.device | str
) -> Iterator[Batch]:
    """One rank's share of the split, in fixed batches: batch ``b`` belongs to rank ``b % world_size``.

    Yields images, float32 (B, C, H, W), channels_last, normalised, and labels, int64 (B,), both on ``device``.
    """
    normalise = _Normalise(dataset, device)
    for start in range(rank * batch_size, len(split), world_size * batch_size):
        rows = slice(start, start + batch_size)
        images = split.images[rows].to(device).permute(0, 2, 3, 1).contiguous()
        yield normalise(images), split.labels[rows].to(device)


class _Normalise:
    """uint8 (B, H, W, C) to normalised float32 (B, C, H, W), channels_last."""

    def __init__(self, dataset: Dataset, device: torch.device | str) -> None:
        _, channels, height, width = dataset.train.images.shape
        self.shape = (height, width, channels)
        std = torch.tensor(dataset.std, device=device)
        mean = torch.tensor(dataset.mean, device=device)
        # One factor a pixel rather than a channel: with so few channels a broadcast would run in tiny inner loops.
        self.factor = (1 / (255 * std)).repeat(height * width)
        self.shift = (-mean / std).repeat(height * width)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.reshape(len(images), -1).to(torch.float32)
        return pixels.mul_(self.factor).add_(self.shift).view(-1, *self.shape).permute(0, 3, 1, 2)


class _Crops:
    """A client's images, uint8 (n, H, W, C), each seen through a window and perhaps a mirror drawn once an epoch."""

    def __init__(self, dataset: Dataset, images: Tensor, augment: bool) -> None:
        self.border = dataset.pad if augment else 0
        self.mirrored = dataset.flip and augment
        self.images = images.permute(0, 2, 3, 1).contiguous()
        self.windows = self._all_windows() if self.border else None

    def _all_windows(self) -> Tensor:
        """A view (n, top, left, H, W * C) of the images with their border: one entry for every possible crop."""
        _, height, width, channels = self.images.shape
        border = self.border
        bordered = pad_border(self.images, (0, 0, border, border, border, border))
        sample, line, pixel, _ = bordered.stride()
        places = 2 * border + 1
        size = (len(bordered), places, places, height, width * channels)
        return bordered.as_strided(size, (sample, line, pixel, line, 1))

    def draw(self, generator: torch.Generator) -> None:
        """Draw each image's window and mirror for the coming epoch."""
        count, device = len(self.images), self.images.device
        self.top, self.left = torch.randint(2 * self.border + 1, (2, count), generator=generator).to(device)
        self.mirror = torch.randint(2, (count, 1, 1, 1), generator=generator).to(device, torch.bool)

    def take(self, rows: Tensor) -> Tensor:
        """The epoch's view of these images, uint8 (B, H, W, C)."""
        if self.windows is None:
            images = self.images[rows]
        else:
            images = self.windows[rows, self.top[rows], self.left[rows]].view(len(rows), *self.images.shape[1:])
        return torch.where(self.mirror[rows], images.flip(2), images) if self.mirrored else images
