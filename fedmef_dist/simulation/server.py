"""The server's part of a round: average, prune, grow."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fedmef_dist.cluster.group import Group
from fedmef_dist.methods.base import WEIGHTS, Method, RoundPlan
from fedmef_dist.methods.server_optimizer import ServerOptimizer
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums


class Server:
    """Holds the global state; every rank keeps the same copy, rank 0 decides about the mask.

    Attributes:
        values: float32 (total,), the global weights and running statistics.
        first_mask: the mask of the first round.
    """

    def __init__(self, space: ParameterSpace, method: Method[Any], optimizer: ServerOptimizer, group: Group) -> None:
        self.space = space
        self.method = method
        self.optimizer = optimizer
        self.group = group
        self.values = space.values.clone()
        self.first_mask = space.mask

    def start(self, values: Tensor, mask: Mask) -> None:
        """Takes the first state (float32 (total,)) and mask: weights outside it become 0."""
        self.set_state(values, mask)
        self.first_mask = mask

    def set_state(self, values: Tensor, mask: Mask) -> None:
        """Takes over a state (float32 (total,)) and its mask."""
        self.space.load(values)
        self.space.set_mask(mask)
        self.values = self.space.values.clone()

    def update(self, plan: RoundPlan, average: Tensor, sums: Mapping[str, Sums]) -> None:
        """The clients' average, or the server optimiser's step towards it, becomes the global state.

        Where clients have masks of their own, the state then has their union, until :meth:`adjust` prunes it.

        Args:
            plan: the round's plan.
            average: float32 (packed_size,), or without the prunable weights where clients have masks of their own.
            sums: the round's collections.
        """
        old, mask = self.values, self.space.mask
        if plan.client_masks:
            values = torch.cat([self.method.merge(old, sums[WEIGHTS]), average])
            mask = Mask(self.method.union(sums[WEIGHTS]), mask.version + 1)
        else:
            values = self.space.unpack(average).clone()
        values = self.optimizer.step(old, values, mask)
        if mask is self.space.mask:
            self.values = values
        else:
            self.set_state(values, mask)
        self.method.observe(plan, self.values, sums)

    def adjust(self, plan: RoundPlan, sums: Mapping[str, Sums], observe: Callable[[str], None]) -> None:
        """Prunes and grows.

        Args:
            plan: the round's plan.
            sums: the round's collections.
            observe: called with ``after_prune`` and ``after_grow`` when the state has come so far.
        """
        old = self.space.mask
        new = self._agree_on_mask(plan, sums)
        grown = (new.active & ~old.active).nonzero().flatten()
        self.set_state(self.values, Mask(old.active & new.active, new.version))
        observe("after_prune")
        start = self.method.grown_values(self.values, grown)
        self.set_state(self.values, new)
        self.values[grown] = start
        observe("after_grow")

    def _agree_on_mask(self, plan: RoundPlan, sums: Mapping[str, Sums]) -> Mask:
        """Rank 0 chooses; the others learn the new mask as bits."""
        old = self.space.mask
        bits = torch.empty_like(old.to_bits())
        if self.group.rank == 0:
            bits = self.method.next_mask(plan, self.values, sums).to_bits()
        self.group.broadcast(bits)
        return Mask.from_bits(bits, old.active.numel(), old.version + 1, old.active.device)

    def digest(self) -> str:
        """SHA-256, hexadecimal, over the global weights, running statistics and mask."""
        digest = hashlib.sha256(self.values.cpu().numpy().tobytes())
        digest.update(self.space.mask.digest)
        return digest.hexdigest()
