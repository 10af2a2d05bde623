"""The server's part of a round: average, prune, grow."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from fedmef_dist.comm.group import Group
from fedmef_dist.methods.base import Method, RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace


class Server:
    """Holds the global state; every rank keeps the same copy, rank 0 decides about the mask.

    Attributes:
        values: float32 (total,), the global weights and running statistics.
    """

    def __init__(self, space: ParameterSpace, method: Method, group: Group) -> None:
        self.space = space
        self.method = method
        self.group = group
        self.values = space.values.clone()

    def start(self, mask: Mask) -> None:
        """Takes the first mask: weights outside it become 0."""
        self.set_state(self.values, mask)

    def set_state(self, values: Tensor, mask: Mask) -> None:
        """Takes over a state (float32 (total,)) and its mask."""
        self.space.load(values)
        self.space.set_mask(mask)
        self.values = self.space.values.clone()

    def average(self, packed: Tensor) -> None:
        """Takes the clients' weighted average, float32 (packed_size,), as the new global state."""
        self.values = self.space.unpack(packed).clone()

    def adjust(self, plan: RoundPlan, gradient: Tensor, observe: Callable[[str], None]) -> int:
        """Prunes and grows; returns the number of weights swapped.

        Args:
            plan: the round's plan.
            gradient: float32 (n_prunable,), the aggregated gradients of inactive weights.
            observe: called with ``after_prune`` and ``after_grow`` when the state has come so far.
        """
        old = self.space.mask
        new = self._agree_on_mask(plan, gradient)
        grown = (new.active & ~old.active).nonzero().flatten()
        self.set_state(self.values, Mask(old.active & new.active, new.version))
        observe("after_prune")
        start = self.method.grown_values(self.values, grown)
        self.set_state(self.values, new)
        self.values[grown] = start
        observe("after_grow")
        return grown.numel()

    def _agree_on_mask(self, plan: RoundPlan, gradient: Tensor) -> Mask:
        """Rank 0 chooses; the others learn the new mask as bits."""
        old = self.space.mask
        bits = torch.empty_like(old.to_bits())
        if self.group.rank == 0:
            swap = self.method.swap(plan, self.values, gradient)
            bits = old.swap(swap.pruned, swap.grown).to_bits()
        self.group.broadcast(bits)
        return Mask.from_bits(bits, old.active.numel(), old.version + 1, old.active.device)

    def digest(self) -> str:
        """SHA-256, hexadecimal, over the global weights, running statistics and mask."""
        digest = hashlib.sha256(self.values.cpu().numpy().tobytes())
        digest.update(self.space.mask.digest)
        return digest.hexdigest()
