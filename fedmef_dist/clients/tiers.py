"""Tiers: devices with less room train a part of the round's mask.

Devices differ, and FLASH (arXiv 2208.13092, hetero-FLASH) and SparsyFed (arXiv 2504.05153) give each a density of its
own. A client of a tier below the model's density trains the largest weights of each layer, as the server's model has
them; it is sent these, and sends these. The server averages a weight over those that hold it. Where clients change
masks of their own, each begins with its tier's part, and the method merges what they send.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import uniform_per_client
from fedmef_dist.clients.cohort import Cohort, TierSettings
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest, share_out
from fedmef_dist.wire.encodings import AtKnownPositions, Positions
from fedmef_dist.wire.traffic import Upload, at_positions

# With tiers in every round: the weights that a client holds. Where clients have masks of their own these come with a
# collection of the method's, and this one has positions alone, which the server knows.
HELD = "held_weights"
_WHERE = "federation.tiers"


@dataclass(frozen=True)
class TierRound:
    """One tier in one round.

    Attributes:
        mask: what its clients train; the round's own where they hold all of it.
        is_part: whether it is less than the round's.
        plan: what they do.
    """

    mask: Mask
    is_part: bool
    plan: RoundPlan


class Tiers:
    """Which client is in which tier, and what a tier trains.

    Every rank finds the same masks from the state that is broadcast. Clients that no tier claims are a last one, with
    the model's own density.

    Args:
        settings: the tiers; with none there is nothing to do.
        space: the parameter space.
        seed: of the run.
        refusal: why the method cannot train parts of its mask; None: it can.
        part: (a round's plan, a part of its mask) -> what clients do that train it.

    Raises:
        UserError: the method cannot, or a tier's density is out of reach.
    """

    def __init__(
        self,
        settings: Sequence[TierSettings],
        space: ParameterSpace,
        seed: int,
        refusal: str | None,
        part: Callable[[RoundPlan, Mask], RoundPlan] = lambda plan, mask: plan,
    ) -> None:
        self.space, self.seed, self._part_of = space, seed, part
        self._bounds = np.cumsum([tier.share for tier in settings])
        if settings and np.isclose(self._bounds[-1], 1):
            self._bounds[-1] = 1.0
        self._targets = [round(tier.density * space.n_parameters) - space.n_dense for tier in settings]
        self._last: tuple[RoundPlan, Mask, list[TierRound]] | None = None
        if not settings:
            return
        if refusal is not None:
            raise UserError(f"this method has no tiers: {refusal}", where=_WHERE, mend="leave tiers out")
        least = sum(layer.floor for layer in space.layers)
        for tier, target in zip(settings, self._targets, strict=True):
            if target < least:
                smallest = np.ceil(1e4 * (least + space.n_dense) / space.n_parameters) / 1e4
                raise UserError(
                    f"a tier's density {tier.density:g} cannot be reached: {space.n_dense:,} of "
                    f"{space.n_parameters:,} parameters are never pruned",
                    where=_WHERE,
                    mend=f"choose at least {smallest:.4f}",
                )

    def __len__(self) -> int:
        """How many there are, the clients that no tier claims counted as one; 0 without tiers."""
        return len(self._targets) + 1 if self._targets else 0

    @property
    def populated(self) -> int:
        """How many have clients: all but the last one, where the others' shares add up to 1."""
        return len(self) - int(bool(self._targets) and self._bounds[-1] == 1)

    def of(self, clients: np.ndarray) -> np.ndarray:
        """Each client's tier, int64 (n,); it stays in it for the whole run."""
        return np.searchsorted(self._bounds, uniform_per_client(self.seed, "tier", clients), side="right")

    def part(self, cohort: Cohort, tier: int) -> Cohort:
        """The clients of one tier in a cohort; who dropped out is not told apart."""
        asked, mine = self.of(cohort.asked) == tier, self.of(cohort.clients) == tier
        return replace(
            cohort,
            asked=cohort.asked[asked],
            clients=cohort.clients[mine],
            samples=cohort.samples[mine],
            weights=cohort.weights[mine],
        )

    def round(self, plan: RoundPlan, mask: Mask) -> list[TierRound]:
        """What each tier trains in a round with this mask."""
        if self._last is not None and self._last[0] is plan and self._last[1] is mask:
            return self._last[2]
        found = [self._tier(plan, mask, target) for target in [*self._targets, mask.count]]
        self._last = plan, mask, found
        return found

    def _tier(self, plan: RoundPlan, mask: Mask, target: int) -> TierRound:
        is_part = target < mask.count
        own = mask.next(self._largest(plan.values, mask, target)) if is_part else mask
        if is_part:
            values = plan.values.clone()
            values[: self.space.n_prunable].masked_fill_(~own.active, 0)
            plan = self._part_of(replace(plan, values=values), own)
        return TierRound(own, is_part, _held(self.space, plan, own, mask))

    def _largest(self, values: Tensor, mask: Mask, target: int) -> Tensor:
        """The weights of largest magnitude, in each layer its share of ``target``, bool (n_prunable,)."""
        layers, counts = self.space.layers, self.space.layer_counts(mask)
        floors = [min(layer.floor, count) for layer, count in zip(layers, counts, strict=True)]
        wanted = share_out([max(count, 1) for count in counts], max(target, sum(floors)), floors, counts)
        scores = values[: self.space.n_prunable].abs().masked_fill(~mask.active, -1)
        active = torch.zeros_like(mask.active)
        for layer, count in zip(layers, wanted, strict=True):
            active[layer.start + keep_largest(layer, scores[layer.start : layer.stop], count)] = True
        return active

    def merge(self, plan: RoundPlan, average: Tensor, held: Tensor, votes: Tensor) -> Tensor:
        """The clients' mean state, float32 (total,).

        Args:
            plan: the method's.
            average: float32 (total,), of which the prunable weights are missing.
            held: float32 (n_prunable,), the mean of those clients that hold a weight.
            votes: int64 (n_prunable,), their weight; where it is 0 the weight stays what it was.
        """
        values, last = average.clone(), self.space.n_prunable
        values[:last] = torch.where(votes > 0, held, plan.values[:last])
        return values


def _held(space: ParameterSpace, plan: RoundPlan, own: Mask, mask: Mask) -> RoundPlan:
    counts = space.layer_counts(own)
    if not plan.returns_weights:
        held = at_positions(HELD, space, counts, Positions(), has_votes=True, travels=False)
        return replace(plan, collections=(*plan.collections, held))
    held = at_positions(HELD, space, counts, AtKnownPositions(space, own.active), has_votes=True)
    return replace(plan, collections=(*plan.collections, held), returns_weights=False, round_mask=mask)


def held_upload(plan: RoundPlan, space: ParameterSpace, sent: Mask) -> dict[str, Upload]:
    """A client's contribution to the weights that clients hold; nothing without tiers.

    With a mask of its own it holds what it was sent, too, and so has a say where it has pruned.

    Args:
        plan: its tier's.
        space: with the mask and values that the client ends with.
        sent: the mask that it began with.
    """
    if plan.round_mask is not None:
        return {HELD: Upload(space.mask.index, space.values[space.mask.index])}
    if any(wanted.name == HELD for wanted in plan.collections):
        return {HELD: Upload((sent.active | space.mask.active).nonzero().flatten())}
    return {}
