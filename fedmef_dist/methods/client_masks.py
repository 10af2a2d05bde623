"""What methods whose clients change their own masks have in common.

In an adjusting round each client trains, swaps weights once, trains on, and uploads its weights with their positions.
The server merges them over the union of the clients' masks, and prunes the union by magnitude back to every layer's
count.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, Received, holders
from fedmef_dist.methods.swapping import RandomStart, RandomStartSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
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


def union_of_masks(space: ParameterSpace, weights: Sums, held: Tensor | None) -> Tensor:
    """Positions (bool (n_prunable,)) that some client keeps; with tiers also what none of them was sent.

    Args:
        space: the parameter space with the mask that was broadcast.
        weights: what the clients sent, with votes.
        held: see :func:`holders`.
    """
    assert weights.votes is not None
    union = weights.votes > 0
    return union if held is None else union | (space.mask.active & (held == 0))


def before_others(space: ParameterSpace, union: Tensor, old: Tensor) -> Tensor:
    """Scores (float32 (n_prunable,)) by which a union of masks that is too small is filled up.

    Where clients train parts of the mask, what one of them grows may be active in the server's model, so that the union
    has too few. Then the largest of those weights stay that its clients have pruned.

    Args:
        space: the parameter space with the mask that was broadcast.
        union: bool (n_prunable,), which comes first.
        old: float32 (total,), the state that was broadcast.
    """
    scores = old[: space.n_prunable].abs().masked_fill(~space.mask.active, -1)
    return scores.masked_fill_(union, torch.finfo(scores.dtype).max / 2)


class ClientMasks(RandomStart[ClientMaskSettingsT]):
    """From a random mask; on a schedule clients swap ``floor(zeta_r * a_l)`` weights of each layer."""

    Settings: ClassVar[type[ClientMaskSettings]] = ClientMaskSettings

    def __init__(self, settings: ClientMaskSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = self.adjustments()

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
        plan = RoundPlan(round, values, broadcasts=self.broadcasts(values), returns_weights=False, adjusts=True)
        return self._swapping(plan, self.counts)

    def part(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """In an adjusting round a client swaps the same share of its part; it may grow anywhere outside of it."""
        return self._swapping(plan, self.space.layer_counts(mask)) if plan.adjusts else plan

    def _swapping(self, plan: RoundPlan, own: Sequence[int]) -> RoundPlan:
        """The plan of an adjusting round for clients with so many weights in each layer."""
        counts = swap_counts(self.space.layers, own, self.schedule.share(plan.round))
        return replace(
            plan,
            work=self.local_swap(counts, plan.values, GrowthOrder(self.context.seed, plan.round)),
            collections=(at_positions(WEIGHTS, self.space, own, WithMask(), has_votes=True),),
            swap_counts=counts,
        )

    def union(self, weights: Sums, held: Tensor | None) -> Tensor:
        """Positions (bool (n_prunable,)) that are active after a round whose clients have masks of their own."""
        return union_of_masks(self.space, weights, held)

    def merge(self, values: Tensor, weights: Sums, held: Tensor | None) -> Tensor:
        """One vector of prunable weights, float32 (n_prunable,), right where a client keeps one.

        Args:
            values: float32 (total,), the state that was broadcast.
            weights: what the clients sent, with votes.
            held: see :func:`holders`.
        """
        return weights.mean_of_voters()

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """In an adjusting round the union of the clients' masks; what it has and nobody sent is as it was."""
        if plan.returns_weights:
            return received.average, None
        weights, held = received.sums[WEIGHTS], holders(received.sums)
        assert weights.votes is not None
        union = self.union(weights, held)
        if held is not None:
            union = self._filled_up(union, plan.values)
        merged, old = self.merge(plan.values, weights, held), plan.values[: self.space.n_prunable]
        merged = torch.where(weights.votes > 0, merged, old).masked_fill_(~union, 0)
        return torch.cat([merged, received.average[self.space.n_prunable :]]), union

    def _filled_up(self, union: Tensor, old: Tensor) -> Tensor:
        """The union, and in layers where it has too few what :func:`before_others` finds."""
        scores, filled = before_others(self.space, union, old), union.clone()
        for layer, count in zip(self.space.layers, self.counts, strict=True):
            if int(union[layer.start : layer.stop].count_nonzero()) < count:
                filled[layer.start + keep_largest(layer, scores[layer.start : layer.stop], count)] = True
        return filled

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """Prunes the union of the clients' masks by magnitude, back to the layers' counts."""
        return prune_to_counts(self.space, values[: self.space.n_prunable].abs(), self.counts)
