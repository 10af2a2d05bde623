"""FedSGC.

Tian, Liu, Li, Cheung, Wang: "Gradient-Congruity Guided Federated Sparse Training", 2024, arXiv 2405.01189. Clients
change their own masks, with an eye on where the global model is going: the server sends the direction of its last
round, sign(theta_r - theta_(r-1)); a client prunes first what it moves against that direction, and grows first what
would move with it.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.clients.plan import LocalClient, RoundPlan
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.client_masks import ClientMasks, ClientMaskSettings, LocalSwap
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.swapping import SwappingSettings
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.selection import largest
from fedmef_dist.sparsity.swaps import prunable_magnitude
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.encodings import Signs
from fedmef_dist.wire.ranges import prunable
from fedmef_dist.wire.traffic import Broadcast

_DIRECTION = "direction"
_DIRECTIONS_A_NUMBER = 16  # of two bits each in a float32


class FedSgcSettings(ClientMaskSettings, SwappingSettings):
    """Section ``method`` with ``name: fedsgc``."""

    name: Literal["fedsgc"] = Field("fedsgc", description="federated sparse training guided by gradient congruity")
    congruity_lambda: float = Field(
        0.01, ge=0, le=1, description="share of the swapped weights chosen first among those that congruity names"
    )
    absent: Literal["ignored", "keep_old"] = Field(
        "ignored",
        description="clients that were not sampled: left out of an adjusting round's average, or in it with old values",
    )


def preferred_first(
    space: ParameterSpace,
    scores: Tensor,
    preferred: Tensor,
    counts: Sequence[int],
    share: float,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Positions (int64) of ``counts`` large scores in each layer.

    First floor(share * count) of the preferred ones, or as many as there are, then the largest of all that are left.

    Args:
        space: the parameter space.
        scores: float32 (n_prunable,); minus infinity where a position cannot be chosen.
        preferred: bool (n_prunable,).
        counts: how many of each layer, no more than can be chosen.
        share: lambda.
        generator: draws which of equal scores are taken; None: the first ones.
    """
    chosen = []
    for layer, count in zip(space.layers, counts, strict=True):
        rest = scores[layer.start : layer.stop].clone()
        among = rest.masked_fill(~preferred[layer.start : layer.stop], -torch.inf)
        first = largest(among, min(int(share * count), int((among > -torch.inf).count_nonzero())), generator)
        rest[first] = -torch.inf
        chosen.append(layer.start + torch.cat([first, largest(rest, count - len(first), generator)]))
    return torch.cat(chosen)


class CongruentSwap(LocalSwap):
    """A swap that looks first at how a client's change Delta agrees with the direction d of the global model.

    At an active weight Delta is what local training has changed since the broadcast. An inactive weight does not
    change; there Delta is what a step would do, minus the gradient.

    Args:
        space: the parameter space.
        counts: how many weights of each layer are pruned, and grown.
        share: of a client's steps before the swap.
        order: of weights whose gradients are equal.
        broadcast: float32 (n_prunable,), the weights at the start of the round.
        strength: lambda.
    """

    def __init__(
        self,
        space: ParameterSpace,
        counts: Sequence[int],
        share: float,
        order: GrowthOrder,
        *,
        broadcast: Tensor,
        strength: float,
    ) -> None:
        super().__init__(space, counts, share, order)
        self.broadcast, self.strength = broadcast, strength
        # The active weights that were sent, and two bits a weight for the direction.
        self.held = space.mask.count + ceil(space.n_prunable / _DIRECTIONS_A_NUMBER)

    def begin(self, client: LocalClient) -> None:
        """Takes the direction d that the client has received, float32 (n_prunable,) in {-1, 0, 1}."""
        super().begin(client)
        self.direction = client.received[_DIRECTION]

    def pruned(self) -> Tensor:
        """First weights of small magnitude with d * Delta < 0, then any of small magnitude."""
        values = self.space.values[: self.space.n_prunable]
        conflicting = self.direction * (values - self.broadcast) < 0
        scores = -prunable_magnitude(self.space, values.abs())
        return preferred_first(self.space, scores, conflicting, self.counts, self.strength)

    def grown(self) -> Tensor:
        """First weights of large gradient with d * Delta > 0, then any of large gradient."""
        gradient = self.space.gradient[: self.space.n_prunable]
        scores = gradient.abs().masked_fill_(self.space.mask.active, -torch.inf)
        generator = self.order.of(self.client)
        agreeing = self.direction * -gradient > 0
        return preferred_first(self.space, scores, agreeing, self.counts, self.strength, generator)


class FedSgc(ClientMasks[FedSgcSettings]):
    """Who does not keep a weight counts in its average with the old global value."""

    Settings: ClassVar[type[FedSgcSettings]] = FedSgcSettings

    def __init__(self, settings: FedSgcSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self._previous = space.values.new_zeros(space.n_prunable)

    def adjustments(self) -> AdjustmentSchedule:
        """That of the settings."""
        return self.settings.schedule()

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Random, with the allocation's exact count in every layer. In the first round the model has no direction."""
        active = super().initial_mask(preparation)
        self._previous = preparation.values[: self.space.n_prunable] * active
        return active

    def broadcasts(self, values: Tensor) -> tuple[Broadcast, ...]:
        """The direction of the global model since the last round."""
        direction = (values[: self.space.n_prunable] - self._previous).sign()
        return (Broadcast(_DIRECTION, prunable(self.space), direction, Signs()),)

    def local_swap(self, counts: Sequence[int], values: Tensor, order: GrowthOrder) -> LocalSwap:
        """A swap guided by the direction."""
        return CongruentSwap(
            self.space,
            counts,
            self.settings.local_share,
            order,
            broadcast=values[: self.space.n_prunable],
            strength=self.settings.congruity_lambda,
        )

    def union(self, weights: Sums, held: Tensor | None) -> Tensor:
        """What a client keeps that took part, or one that did not."""
        union = super().union(weights, held)
        return union | self.space.mask.active if self.settings.absent == "keep_old" else union

    def merge(self, values: Tensor, weights: Sums, held: Tensor | None) -> Tensor:
        """The average over all clients that count, of whom those that have pruned a weight have its old value."""
        assert weights.total is not None
        assert weights.votes is not None
        everybody = torch.full_like(weights.votes, weights.weight) if held is None else held.clamp(min=1)
        if self.settings.absent == "keep_old":
            everybody = everybody.clamp(min=self.context.total_weight)  # the latter may be an estimate
        old = values[: self.space.n_prunable].double() * (everybody - weights.votes)
        return ((weights.total.double() * 2.0**-weights.fixed_point.bits + old) / everybody).float()

    def observe(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> None:
        """The round counts: what it broadcast is from where the next direction is taken."""
        self._previous = plan.values[: self.space.n_prunable].clone()

    def state(self) -> dict[str, Tensor]:
        """``previous``, float32 (n_prunable,): the weights that the last round broadcast."""
        return {"previous": self._previous}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave."""
        if not state["previous"].isfinite().all():
            raise ValueError("the weights of the round before are not finite")
        self._previous = state["previous"].to(self._previous.device)
