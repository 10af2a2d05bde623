"""What methods whose clients change their own masks have in common.

In an adjusting round each client trains, swaps weights once, trains on, and uploads its weights with their positions.
The server merges them over the union of the clients' masks, and prunes the union by magnitude back to every layer's
count.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.swapping import RandomStart, RandomStartSettings
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.swaps import strongest_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.encodings import WithMask
from fedmef_dist.wire.traffic import Broadcast, Upload, at_positions

# The collection of clients' prunable weights under masks of their own.
WEIGHTS = "weights"


class ClientMaskSettings(RandomStartSettings):
    """Keys of every method whose clients change their own masks."""

    local_share: float = Field(
        0.5, ge=0, le=1, description="share of a client's steps that it makes before it changes its mask"
    )


ClientMaskSettingsT = TypeVar("ClientMaskSettingsT", bound=ClientMaskSettings)


class LocalSwap(LocalWork):
    """Once in its round a client prunes weights of smallest magnitude and grows those of largest gradient.

    With T steps in the round it does so at step round(share * T), or in the last one: after the backward pass, so that
    the gradient is that of the weights as they were before. What it has just pruned does not grow back at once.

    Args:
        space: the parameter space.
        counts: how many weights of each layer it prunes, and grows.
        share: of its steps before the swap.
        order: of weights whose gradients are equal.
    """

    dense_batches = 1

    def __init__(self, space: ParameterSpace, counts: Sequence[int], share: float, order: GrowthOrder) -> None:
        self.space, self.counts, self.share, self.order = space, counts, share, order
        self.client = -1

    def begin(self, client: LocalClient) -> None:
        """Notes whose mask it is."""
        self.client = client.number

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Swaps if it is time; the step is then made under the client's own mask."""
        if step == min(round(self.share * steps), steps - 1):
            mask = self.space.mask
            self.space.set_mask(mask.next(mask.swapped(self.pruned(), self.grown())))
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The weights with their positions."""
        index = self.space.mask.index
        return {WEIGHTS: Upload(index, self.space.values[index])}

    def pruned(self) -> Tensor:
        """Active positions (int64) that leave."""
        return weakest(self.space, self.space.values[: self.space.n_prunable].abs(), self.counts)

    def grown(self) -> Tensor:
        """Inactive positions (int64) that join; ``space.gradient`` has the gradient of all."""
        gradient = self.space.gradient[: self.space.n_prunable]
        return strongest_inactive(self.space, gradient.abs(), self.counts, self.order.of(self.client))


def prune_to_counts(space: ParameterSpace, magnitude: Tensor, counts: Sequence[int]) -> Tensor:
    """The ``counts`` active weights of largest magnitude in each layer, bool (n_prunable,).

    Filters keep their floors, which they must have.

    Args:
        space: the parameter space with its current mask.
        magnitude: float32 (n_prunable,), at least 0.
        counts: no more than a layer's active weights.
    """
    # An inactive weight must never win, not even against an active one of exactly 0.
    scores = magnitude.masked_fill(~space.mask.active, -1)
    active = torch.zeros_like(space.mask.active)
    for layer, count in zip(space.layers, counts, strict=True):
        active[layer.start + keep_largest(layer, scores[layer.start : layer.stop], count)] = True
    return active


class ClientMasks(RandomStart[ClientMaskSettingsT]):
    """From a random mask; on a schedule clients swap ``floor(zeta_r * a_l)`` weights of each layer."""

    Settings: ClassVar[type[ClientMaskSettings]] = ClientMaskSettings

    def __init__(self, settings: ClientMaskSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = self.adjustments()

    def refuses_tiers(self) -> str | None:
        """Clients swap as many weights as the round's mask has them do."""
        return "its clients change masks of their own, all by the same counts"

    @abstractmethod
    def adjustments(self) -> AdjustmentSchedule:
        """When clients change their masks, and how much of them."""

    def local_swap(self, counts: Sequence[int], values: Tensor, order: GrowthOrder) -> LocalSwap:
        """What a client does in an adjusting round that broadcasts ``values`` (float32 (total,))."""
        return LocalSwap(self.space, counts, self.settings.local_share, order)

    def broadcasts(self, values: Tensor) -> tuple[Broadcast, ...]:
        """What goes down beside the model in an adjusting round."""
        return ()

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: clients swap, and send their weights with positions."""
        if not self.schedule.adjusts(round):
            return RoundPlan(round, values)
        counts = swap_counts(self.space.layers, self.counts, self.schedule.share(round))
        return RoundPlan(
            round,
            values,
            self.local_swap(counts, values, GrowthOrder(self.context.seed, round)),
            broadcasts=self.broadcasts(values),
            collections=(at_positions(WEIGHTS, self.space, self.counts, WithMask(), has_votes=True),),
            returns_weights=False,
            adjusts=True,
            swap_counts=counts,
        )

    def union(self, weights: Sums) -> Tensor:
        """Positions (bool (n_prunable,)) that are active after a round whose clients have masks of their own."""
        assert weights.votes is not None
        return weights.votes > 0

    def merge(self, values: Tensor, weights: Sums) -> Tensor:
        """One vector of prunable weights, float32 (n_prunable,), 0 outside :meth:`union`.

        Args:
            values: float32 (total,), the state that was broadcast.
            weights: what the clients sent, with votes.
        """
        return weights.mean_of_voters()

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """In an adjusting round the union of the clients' masks."""
        if plan.returns_weights:
            return received.average, None
        weights = received.sums[WEIGHTS]
        rest = received.average[self.space.n_prunable :]
        return torch.cat([self.merge(plan.values, weights), rest]), self.union(weights)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """Prunes the union of the clients' masks by magnitude, back to the layers' counts."""
        return prune_to_counts(self.space, values[: self.space.n_prunable].abs(), self.counts)
