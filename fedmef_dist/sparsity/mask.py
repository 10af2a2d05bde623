"""Which prunable weights are active."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Mask:
    """An immutable boolean mask over the prunable part of the flat vector.

    Args:
        active: bool (n_prunable,), in storage order; a byte a weight, and all that a mask keeps.
        version: how many times the run has changed its mask.
    """

    def __init__(self, active: Tensor, version: int = 0) -> None:
        self.active = active
        self.version = version
        self._index: Tensor | None = None

    @classmethod
    def full(cls, length: int, device: torch.device | str = "cpu", version: int = 0) -> "Mask":
        """The mask of a model of which nothing is pruned. One byte stands for all of it."""
        return cls(torch.ones((), dtype=torch.bool, device=device).expand(length), version)

    @property
    def index(self) -> Tensor:
        """The active positions, int64 (count,), sorted.

        On the CPU they are found anew at each call, since they take 8 bytes each; elsewhere finding them would make the
        host wait with every client.
        """
        if self.active.device.type == "cpu":
            return self.active.nonzero().flatten()
        if self._index is None:
            self._index = self.active.nonzero().flatten()
        return self._index

    @cached_property
    def count(self) -> int:
        """Number of active weights."""
        return int(self.active.count_nonzero())  # a sum would first turn every bool into eight bytes

    @cached_property
    def is_full(self) -> bool:
        """Whether every weight is active."""
        return self.count == self.active.numel()

    def to_bits(self) -> Tensor:
        """One bit a weight, uint8 (ceil(n_prunable / 8),) on the CPU."""
        return torch.from_numpy(np.packbits(self.active.cpu().numpy(), bitorder="little"))

    @classmethod
    def from_bits(cls, bits: Tensor, length: int, version: int, device: torch.device | str = "cpu") -> "Mask":
        """The inverse of :meth:`to_bits`."""
        active = np.unpackbits(bits.cpu().numpy(), count=length, bitorder="little").view(np.bool_)
        if active.all():
            return cls.full(length, device, version)
        return cls(torch.from_numpy(active).to(device), version)

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

    def overlap(self, other: "Mask") -> float:
        """Jaccard's index of two masks: weights active in both over those active in either."""
        either = int((self.active | other.active).count_nonzero())
        return int((self.active & other.active).count_nonzero()) / either if either else 1.0

    def survived(self, later: "Mask") -> float:
        """The share of this mask's weights that are active in ``later``."""
        return int((self.active & later.active).count_nonzero()) / max(self.count, 1)
