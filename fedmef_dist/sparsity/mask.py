"""Which prunable weights are active."""

import hashlib
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.transfer import brought


class Mask:
    """An immutable boolean mask over the prunable part of the flat vector.

    Args:
        active: bool (n_prunable,), in storage order; a byte a weight, and on the CPU all that a mask keeps.
        version: how many times the run has changed its mask.
        known: the same on the host, if it is there anyway: else a mask on a device is brought when something is asked.
    """

    def __init__(self, active: Tensor, version: int = 0, known: np.ndarray | None = None) -> None:
        self.active = active
        self.version = version
        self._known = None if active.device.type == "cpu" else known
        self._index: Tensor | None = None

    @classmethod
    def full(cls, length: int, device: torch.device | str = "cpu", version: int = 0) -> "Mask":
        """The mask of a model of which nothing is pruned. One byte stands for all of it."""
        known = np.broadcast_to(np.True_, length)
        return cls(torch.ones((), dtype=torch.bool, device=device).expand(length), version, known)

    @property
    def on_host(self) -> np.ndarray:
        """What is active, bool (n_prunable,); read-only. A device is waited for once."""
        if self.active.device.type == "cpu":
            return self.active.numpy()
        if self._known is None:
            self._known = self.active.cpu().numpy()
        return self._known

    @property
    def index(self) -> Tensor:
        """The active positions, int64 (count,), sorted.

        On the CPU they are found anew at each call, since they take 8 bytes each; elsewhere every client would bring
        them anew.
        """
        if self.active.device.type == "cpu":
            return self.active.nonzero().flatten()
        if self._index is None:
            self._index = brought(torch.from_numpy(np.flatnonzero(self.on_host)), self.active.device)
        return self._index

    @cached_property
    def count(self) -> int:
        """Number of active weights."""
        return int(np.count_nonzero(self.on_host))

    def counts(self, parts: Iterable[slice]) -> list[int]:
        """Number of active weights in each of these parts."""
        return [int(np.count_nonzero(self.on_host[part])) for part in parts]

    @cached_property
    def is_full(self) -> bool:
        """Whether every weight is active."""
        return self.count == self.active.numel()

    def to_bits(self) -> Tensor:
        """One bit a weight, uint8 (ceil(n_prunable / 8),) on the CPU."""
        return torch.from_numpy(np.packbits(self.on_host, bitorder="little"))

    @classmethod
    def from_bits(cls, bits: Tensor, length: int, version: int, device: torch.device | str = "cpu") -> "Mask":
        """The inverse of :meth:`to_bits`."""
        active = np.unpackbits(bits.cpu().numpy(), count=length, bitorder="little").view(np.bool_)
        if active.all():
            return cls.full(length, device, version)
        return cls(brought(torch.from_numpy(active), device), version, active)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the bits, 32 bytes."""
        return hashlib.sha256(self.to_bits().numpy().tobytes()).digest()

    def swapped(self, pruned: Tensor, grown: Tensor) -> Tensor:
        """What is active, bool (n_prunable,), once ``pruned`` have left and ``grown`` (both int64) have joined."""
        active = self.active.clone()
        active[pruned] = False
        active[grown] = True
        return active

    def next(self, active: Tensor) -> "Mask":
        """The version behind this one, with these weights (bool (n_prunable,)) active."""
        return Mask(active, self.version + 1)

    def within(self, other: "Mask") -> "Mask":
        """What of it is active in the other one, too."""
        known = None if self._known is None or other._known is None else self._known & other._known
        return Mask(self.active & other.active, self.version, known)

    def without(self, other: "Mask") -> "Mask":
        """What of it is not active in the other one."""
        known = None if self._known is None or other._known is None else self._known & ~other._known
        return Mask(self.active & ~other.active, self.version, known)

    def overlap(self, other: "Mask") -> float:
        """Jaccard's index of two masks: weights active in both over those active in either."""
        both = self.within(other).count
        either = self.count + other.count - both
        return both / either if either else 1.0

    def survived(self, later: "Mask") -> float:
        """The share of this mask's weights that are active in ``later``."""
        return self.within(later).count / max(self.count, 1)
