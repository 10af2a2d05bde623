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

from fedmef_dist.methods.base import WEIGHTS, Collection, LocalWork, MethodContext, RoundPlan
from fedmef_dist.methods.swapping import RandomStart, SparseSettings, strongest_inactive, swap_counts, weakest
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sums.position_sum import Sums


class ClientMaskSettings(SparseSettings):
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
    """

    dense_batches = 1

    def __init__(self, space: ParameterSpace, counts: Sequence[int], share: float) -> None:
        self.space, self.counts, self.share = space, counts, share

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Swaps if it is time; the step is then made under the client's own mask."""
        if step == min(round(self.share * steps), steps - 1):
            self.space.set_mask(self.space.mask.swap(self.pruned(), self.grown()))
        return rate

    def pruned(self) -> Tensor:
        """Active positions (int64) that leave."""
        return weakest(self.space, self.space.values[: self.space.n_prunable].abs(), self.counts)

    def grown(self) -> Tensor:
        """Inactive positions (int64) that join; ``space.gradient`` has the gradient of all."""
        return strongest_inactive(self.space, self.space.gradient[: self.space.n_prunable].abs(), self.counts)


def prune_to_counts(space: ParameterSpace, magnitude: Tensor, counts: Sequence[int]) -> Mask:
    """The mask of the ``counts`` active weights of largest magnitude in each layer.

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
    return Mask(active, space.mask.version + 1)


class ClientMasks(RandomStart[ClientMaskSettingsT]):
    """From a random mask; on a schedule clients swap ``floor(zeta_r * a_l)`` weights of each layer."""

    Settings: ClassVar[type[ClientMaskSettings]] = ClientMaskSettings

    def __init__(self, settings: ClientMaskSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = self.adjustments()

    @abstractmethod
    def adjustments(self) -> AdjustmentSchedule:
        """When clients change their masks, and how much of them."""

    def local_swap(self, counts: Sequence[int], values: Tensor) -> LocalSwap:
        """What a client does in an adjusting round that broadcasts ``values`` (float32 (total,))."""
        return LocalSwap(self.space, counts, self.settings.local_share)

    def plan(self, round_number: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: clients swap, and send their weights with positions."""
        if not self.schedule.adjusts(round_number):
            return RoundPlan()
        counts = swap_counts(self.space.layers, self.counts, self.schedule.share(round_number))
        return RoundPlan(
            self.local_swap(counts, values),
            adjusts=True,
            collections=(Collection(WEIGHTS, self.counts, has_votes=True),),
            client_masks=True,
            swap_counts=counts,
        )

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Mask:
        """Prunes the union of the clients' masks by magnitude, back to the layers' counts."""
        return prune_to_counts(self.space, values[: self.space.n_prunable].abs(), self.counts)
