"""FedRTS.

Huang, Yu, Chen, Zheng, Wang, Chen: "FedRTS: Federated Robust Pruning via Combinatorial Thompson Sampling", 2025, arXiv
2501.19122. Every prunable weight is an arm of a bandit with a Beta(a, b) posterior on whether it should be active. The
posteriors learn in every round from the magnitudes of the aggregated and of the clients' weights, and in adjusting
rounds also from where the clients' largest gradients of inactive weights are. An adjustment draws from all posteriors
and keeps each layer's largest draws: weights are neither pruned nor grown by one round's noisy ranking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, holders
from fedmef_dist.methods.swapping import RandomStart, RandomStartSettings, SwappingSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import strongest_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.encodings import Positions
from fedmef_dist.wire.traffic import Collection, Upload, at_positions

_KEPT, _WANTED = "kept", "wanted"
# What the aggregated model says of an inactive weight: nothing.
_UNDECIDED = 0.5


class FedRtsSettings(SwappingSettings, RandomStartSettings):
    """Section ``method`` with ``name: fedrts``."""

    name: Literal["fedrts"] = Field("fedrts", description="masks drawn by combinatorial Thompson sampling")
    gamma: float = Field(0.5, ge=0, le=1, description="weight of the aggregated model against that of the clients")
    posterior_rate: float = Field(10.0, gt=0, description="lambda, how much a round's outcome counts in a posterior")
    gradient_batches: int = Field(1, ge=1, description="batches for the gradient of inactive weights")


def kept_positions(space: ParameterSpace, values: Tensor, counts: Sequence[int]) -> Tensor:
    """The top kappa_l of each layer: its active weights without the ``counts`` of smallest magnitude, int64.

    Args:
        space: the parameter space with its current mask.
        values: float32 (total,).
        counts: K_l - kappa_l of each layer.
    """
    kept = space.mask.active.clone()
    kept[weakest(space, values[: space.n_prunable].abs(), counts)] = False
    return kept.nonzero().flatten()


class Votes(LocalWork):
    """A client votes for its largest weights, and in adjusting rounds for the inactive ones of largest gradient.

    Args:
        space: the parameter space.
        contested: how many weights of each layer's mask get no vote, K_l - kappa_l where the client trains all of it.
        grown: how many inactive ones of each layer get a vote.
        batches: on how many fresh batches the gradient is taken; 0 in a round that does not adjust.
        order: of weights whose gradients are equal.
    """

    def __init__(
        self, space: ParameterSpace, contested: Sequence[int], grown: Sequence[int], batches: int, order: GrowthOrder
    ) -> None:
        self.space, self.contested, self.grown, self.order = space, contested, grown, order
        self.gradient_batches, self._client = batches, -1

    @property
    def collections(self) -> tuple[Collection, ...]:
        """The votes. The server sees the weights themselves; of the gradients only the positions travel."""
        kept = [count - least for count, least in zip(self.space.layer_counts(), self.contested, strict=True)]
        weights = at_positions(_KEPT, self.space, kept, Positions(), has_votes=True, travels=False)
        gradients = at_positions(_WANTED, self.space, self.grown, Positions(), has_votes=True)
        return (weights, gradients) if self.gradient_batches else (weights,)

    def begin(self, client: LocalClient) -> None:
        """Notes whose votes these are."""
        self._client = client.number

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The positions voted for."""
        votes = {_KEPT: Upload(kept_positions(self.space, self.space.values, self.contested))}
        if gradient is not None:
            order = self.order.of(self._client)
            votes[_WANTED] = Upload(strongest_inactive(self.space, gradient.abs(), self.grown, order))
        return votes


class FedRts(RandomStart[FedRtsSettings]):
    """Draws masks from what all rounds have said of each weight.

    Attributes:
        posterior: float32 (2, n_prunable), a and b of each weight's Beta distribution.
    """

    Settings: ClassVar[type[FedRtsSettings]] = FedRtsSettings

    def __init__(self, settings: FedRtsSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = settings.schedule()
        self.posterior = torch.ones(2, space.n_prunable, device=space.values.device)

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """Votes in every round until the schedule's share is 0: then no mask will be drawn any more."""
        share, adjusts = self.schedule.share(round), self.schedule.adjusts(round)
        if not share:
            return RoundPlan(round, values)
        counts = swap_counts(self.space.layers, self.counts, share)
        return self._voting(RoundPlan(round, values, adjusts=adjusts, swap_counts=counts), counts, counts)

    def part(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """A client votes for the top of its part, as large a share as others; the rest of the mask is 0 to it."""
        if not plan.collections:
            return plan
        own = self.space.layer_counts(mask)
        least = swap_counts(self.space.layers, own, self.schedule.share(plan.round))
        contested = [whole - count + xi for whole, count, xi in zip(self.counts, own, least, strict=True)]
        free = [layer.size - whole for layer, whole in zip(self.space.layers, self.counts, strict=True)]
        return self._voting(plan, contested, [min(xi, most) for xi, most in zip(least, free, strict=True)])

    def _voting(self, plan: RoundPlan, contested: Sequence[int], grown: Sequence[int]) -> RoundPlan:
        batches = self.settings.gradient_batches if plan.adjusts else 0
        work = Votes(self.space, contested, grown, batches, GrowthOrder(self.context.seed, plan.round))
        return replace(plan, work=work, collections=work.collections)

    def observe(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> None:
        """Adds lambda X to a and lambda (1 - X) to b of every weight of which the round says anything."""
        if not plan.collections:
            return
        active = self.space.mask.active
        outcome = self._outcome(kept_positions(self.space, values, plan.swap_counts), sums)
        seen = torch.ones_like(active) if plan.adjusts else active
        step = self.settings.posterior_rate * torch.stack([outcome, 1 - outcome]) * seen
        self.posterior += step.float()

    def _outcome(self, kept: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """X of every weight, float64 (n_prunable,); ``kept`` is the top kappa_l of the aggregated weights."""
        active, gamma = self.space.mask.active, self.settings.gamma
        aggregated = torch.full(active.shape, _UNDECIDED, dtype=torch.float64, device=active.device)
        aggregated[active] = 0
        aggregated[kept] = 1
        of_clients, held = sums[_KEPT].share(), holders(sums)
        if held is not None:  # only those vote on a weight that hold it
            votes = of_clients * sums[_KEPT].weight / held.clamp(min=1)
            of_clients = torch.where(held > 0, votes, active * _UNDECIDED)
        if _WANTED in sums:
            of_clients = of_clients + sums[_WANTED].share()
        return gamma * aggregated + (1 - gamma) * of_clients

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """Each layer's K_l largest draws from the posteriors."""
        generator = numpy_generator(self.context.seed, "beta", plan.round)
        a, b = self.posterior.double().cpu().numpy()
        draws = torch.from_numpy(generator.beta(a, b)).to(self.posterior.device)
        active = torch.zeros_like(self.space.mask.active)
        for layer, count in zip(self.space.layers, self.counts, strict=True):
            active[layer.start + keep_largest(layer, draws[layer.start : layer.stop], count)] = True
        return active

    def state(self) -> dict[str, Tensor]:
        """The posteriors."""
        return {"posterior": self.posterior}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes the posteriors back. Raises ValueError where one has lost what it began with, Beta(1, 1)."""
        if state["posterior"].min() < 1:
            raise ValueError("a posterior below Beta(1, 1)")
        self.posterior = state["posterior"].to(self.posterior.device)
