"""What every data set looks like in memory, whatever its files look like."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedmef_dist.data.digest import tensor_digest
from fedmef_dist.data.record import Findings, Reading


@dataclass(frozen=True)
class Split:
    """Images as uint8 (N, C, H, W) in channels_last memory order, and labels as int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    @property
    def predictions(self) -> int:
        """How many answers a model gives on the split: one an image."""
        return len(self)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over pixels and labels."""
        return tensor_digest("images", self.images.permute(0, 2, 3, 1), self.labels)

    def take(self, rows: Tensor) -> "Split":
        """Some of the samples: ``rows``, int64 (n,), copied."""
        return Split(self.images.index_select(0, rows), self.labels[rows])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on another device; no copy where it is there already."""
        images, labels = self.images.to(device), self.labels.to(device)
        return self if images is self.images and labels is self.labels else Split(images, labels)


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with what is needed to normalise and to augment them.

    ``mean`` and ``std`` have one entry a channel, for pixels scaled to [0, 1]. ``pad`` is the border in pixels of the
    pad-and-crop augmentation (0: none), ``flip`` whether a mirrored image is still an image of its class. ``owners``
    and ``test_owners``, int64 (N,), say whose each sample of a split is, where the data set knows clients by nature.
    ``reading`` says what the files were, ``findings`` what is known of the samples; neither is part of the data.
    """

    name: str
    train: Split
    test: Split
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    owners: Tensor | None = None
    test_owners: Tensor | None = None
    reading: Reading = field(default_factory=Reading, compare=False)
    findings: Findings | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample: (channels, height, width)."""
        return tuple(self.train.images.shape[1:])

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal over pixels, labels and owners of both splits.

        It depends on the decoded arrays alone: not on names, files, the cache, or what is done with the samples.
        """
        known = [tensor for tensor in (self.owners, self.test_owners) if tensor is not None]
        return tensor_digest(f"{self.train.digest} {self.test.digest}", *known)

    def example(self) -> Tensor:
        """A batch of one sample as a model takes it: zeros, float32 (1, channels, height, width)."""
        return torch.zeros(1, *self.shape)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set on another device; no copy where it is there already."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))
