"""The server's part of a round: average, prune, grow."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.cluster.group import Group
from fedmef_dist.methods.base import Method, Received
from fedmef_dist.methods.server_optimizer import ServerOptimizer
from fedmef_dist.simulation.decisions import checked_mask
from fedmef_dist.simulation.global_state import GlobalState
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums


class Server(GlobalState):
    """Keeps the global state: every rank has the same copy, rank 0 decides about the mask."""

    def __init__(self, space: ParameterSpace, method: Method[Any], optimizer: ServerOptimizer, group: Group) -> None:
        super().__init__(space)
        self.method = method
        self.optimizer = optimizer
        self.group = group

    def update(self, plan: RoundPlan, packed: Tensor, sums: Mapping[str, Sums], clients: int) -> None:
        """What the method makes of the clients' updates, or the server optimiser's step towards it, becomes the state.

        Where clients have masks of their own, the state then has their union, until :meth:`adjust` prunes it.

        Args:
            plan: the round's plan.
            packed: float32, the clients' packed average.
            sums: the round's collections.
            clients: how many clients count.
        """
        average = self.space.unpack(packed, plan.returns_weights)
        values, active = self.method.aggregate(plan, Received(average, sums, clients))
        if active is None:
            mask = self.space.mask
        else:
            mask = self.space.mask.next(checked_mask(self.method, "aggregate", active))
        values = self.optimizer.step(plan.values, values, mask)
        if active is None:
            self.values = values.clone()
        else:
            self.set_state(values, mask)
        self.method.observe(plan, self.values, sums)

    def adjust(self, plan: RoundPlan, sums: Mapping[str, Sums]) -> Iterator[str]:
        """Prunes and grows; yields ``after_prune`` and ``after_grow`` when the state has come so far."""
        old = self.space.mask
        new = self._agree_on_mask(plan, sums)
        grown = new.without(old).index
        self.set_state(self.values, new.within(old))
        yield "after_prune"
        start = self.method.grown_values(self.values, grown)
        self.set_state(self.values, new)
        self.values[grown] = start
        yield "after_grow"

    def _agree_on_mask(self, plan: RoundPlan, sums: Mapping[str, Sums]) -> Mask:
        """Rank 0 chooses; the others learn the new mask as bits."""
        old = self.space.mask
        bits = torch.empty_like(old.to_bits())
        if self.group.rank == 0:
            active = self.method.next_mask(plan, self.values, sums)
            bits = Mask(checked_mask(self.method, "next_mask", active)).to_bits()
        self.group.broadcast(bits)
        return Mask.from_bits(bits, old.active.numel(), old.version + 1, old.active.device)
