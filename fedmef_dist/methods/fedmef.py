"""FedMef.

Huang, Zhuang, Chen, Lyu: "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024, arXiv 2403.14737.
A random sparse model is trained from the start. Every few rounds the weights of smallest magnitude are marked, emptied
by the clients through budget-aware extrusion (section 3.2), pruned by the server, and replaced by the inactive weights
of largest aggregated gradient. Scaled activation pruning (section 3.3) lives in the layers.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.layers.acting import acting_magnitude
from fedmef_dist.methods.base import MethodContext, Preferences
from fedmef_dist.methods.extrusion import Deviation, Extrusion, ExtrusionTarget
from fedmef_dist.methods.swapping import (
    RandomStart,
    RandomStartSettings,
    SwappingSettings,
    TopGradients,
)
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.filter_swaps import (
    FEWEST,
    count_in_filters,
    filter_swap_counts,
    filters_can_swap,
    random_inactive_in_filters,
    weakest_swappable,
)
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import random_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.encodings import InFilters

# The keys that a form fixes, each with its value.
FORMS: Mapping[str, Mapping[str, str]] = {
    "published": {
        "first_mask": "layer",
        "swap": "layer",
        "rank_by": "weight",
        "extrusion_target": "zero",
        "growth": "gradient",
    },
    "balanced": {
        "first_mask": "even",
        "swap": "filter",
        "rank_by": "acting",
        "extrusion_target": "mean",
        "growth": "summed",
    },
}


class FedMefSettings(SwappingSettings, RandomStartSettings):
    """Section ``method`` with ``name: fedmef``."""

    name: Literal["fedmef"] = Field("fedmef", description="federated dynamic pruning with little memory")
    form: Literal["published", "balanced"] | None = Field(
        None,
        description="sets five keys at once: the paper's (first_mask layer, swap layer, rank_by weight, "
        "extrusion_target zero, growth gradient), or balanced within filters (even, filter, acting, mean, summed)",
    )
    extrusion: bool = Field(True, description="budget-aware extrusion in adjusting rounds; off for ablation")
    extrusion_lambda: float = Field(
        1.0, ge=0, description="strength of the penalty on marked weights; above 1 / (2 lr) it overshoots"
    )
    extrusion_target: ExtrusionTarget = Field(
        "zero", description="empty marked weights towards 0 or towards their filter's mean"
    )
    marking: Literal["broadcast", "aggregate"] = Field(
        "broadcast", description="prune what was marked on the broadcast model, or rank again after aggregation"
    )
    rank_by: Literal["weight", "acting"] = Field(
        "weight", description="mark by the weight, or by what its normalised filter makes of it"
    )
    swap: Literal["layer", "filter"] = Field(
        "layer",
        description="grow anywhere in the layer, or in every filter as many as it loses; where an even share leaves no "
        "filter three active weights, anywhere in the layer after all",
    )
    growth: Literal["gradient", "summed", "random"] = Field(
        "gradient",
        description="grow by the gradient of fresh batches, by that summed over the local steps and compared channel "
        "by channel, or at random, for which nothing travels",
    )
    gradient_batches: int = Field(1, ge=1, description="batches for the gradient of inactive weights")

    @model_validator(mode="before")
    @classmethod
    def _fill_in_form(cls, given: Any) -> Any:
        form = given.get("form") if isinstance(given, Mapping) else None
        if not isinstance(form, str) or form not in FORMS:
            return given
        for key, value in FORMS[form].items():
            if given.get(key, value) != value:
                raise ValueError(
                    f"{key}: {given[key]} is not of form: {form}, which has {value}; leave out one of the two"
                )
        return {**given, **FORMS[form]}

    @model_validator(mode="after")
    def _extrusion_fits_marking(self) -> "FedMefSettings":
        if not self.extrusion and self.extrusion_lambda != FedMefSettings.model_fields["extrusion_lambda"].default:
            raise ValueError("extrusion_lambda is given although extrusion is off; leave out one of the two")
        return self

    @model_validator(mode="after")
    def _filters_are_known_beforehand(self) -> "FedMefSettings":
        if self.swap == "filter" and self.marking == "aggregate":
            raise ValueError("swap: filter needs marking: broadcast, which tells clients how many each filter grows")
        if self.growth != "gradient" and self.gradient_batches != 1:
            raise ValueError(f"gradient_batches is given although growth is {self.growth}; leave out one of the two")
        return self


class FedMef(RandomStart[FedMefSettings]):
    """Prunes by magnitude what extrusion has emptied, grows by gradient.

    Attributes:
        within_filters: every filter grows what it loses. Decided by the layers' counts, so for a whole run.
    """

    Settings: ClassVar[type[FedMefSettings]] = FedMefSettings
    preferences = Preferences(norm="nsconv", activation_pruning=True)

    def __init__(self, settings: FedMefSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = settings.schedule()
        self.within_filters = settings.swap == "filter" and filters_can_swap(space, self.counts)

    def caution(self) -> str | None:
        """That filters are too thin for swaps within them, so that weights move anywhere in their layer."""
        if self.settings.swap == "layer" or self.within_filters or self.space.mask.is_full:
            return None
        return (
            f"weights are swapped anywhere in their layer: swap filter leaves each filter {FEWEST} active weights, and "
            "at this density none would have more; choose a higher density to keep filters in balance"
        )

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: how many weights are swapped, which are marked, and what empties them."""
        if not self.schedule.adjusts(round):
            return RoundPlan(round, values, mask_update=self._mask_update())
        counts = self._swap_counts(self.schedule.share(round))
        marked = self._mark(values, counts)
        work = self._work(round, counts, marked)
        return RoundPlan(
            round,
            values,
            work,
            collections=work.collections,
            adjusts=True,
            swap_counts=counts,
            marked=marked,
            mask_update=self._mask_update(),
        )

    def _mask_update(self) -> InFilters | None:
        """Where filters keep their counts, whoever knows one mask knows the counts of all."""
        filters = self._filters(self.space.mask.index)
        return None if filters is None else InFilters(self.space, filters)

    def _swap_counts(self, share: float) -> list[int]:
        if self.within_filters:
            return filter_swap_counts(self.space, share)
        return swap_counts(self.space.layers, self.counts, share)

    def _work(self, round: int, counts: list[int], marked: Tensor) -> TopGradients:
        settings = self.settings
        batches = settings.gradient_batches if settings.growth == "gradient" else 0
        summed, filters = settings.growth == "summed", self._filters(marked)
        order = GrowthOrder(self.context.seed, round)
        if not settings.extrusion:
            return TopGradients(self.space, counts, batches, summed=summed, filters=filters, order=order)
        return Extrusion(
            self.space,
            counts,
            batches,
            marked=marked,
            deviation=self._deviation(),
            strength=settings.extrusion_lambda,
            base_rate=self.context.base_rate,
            summed=summed,
            filters=filters,
            order=order,
        )

    def _filters(self, positions: Tensor) -> Tensor | None:
        """How many of the positions each filter has, int64 (filters,); None where filters do not keep their counts."""
        return count_in_filters(self.space, positions) if self.within_filters else None

    def _deviation(self) -> Deviation:
        return Deviation(self.space, self.settings.extrusion_target)

    def _mark(self, values: Tensor, counts: list[int]) -> Tensor:
        acting = self.settings.rank_by == "acting"
        magnitude = acting_magnitude(self.space, values) if acting else self._deviation().of(values).abs()
        weak = weakest_swappable if self.within_filters else weakest
        return weak(self.space, magnitude, counts)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """Prunes the marked weights; grows inactive ones by the aggregated gradient, or at random."""
        assert plan.marked is not None
        pruned = plan.marked if self.settings.marking == "broadcast" else self._mark(values, plan.swap_counts)
        return self.space.mask.swapped(pruned, self._grown(plan, pruned, sums))

    def _grown(self, plan: RoundPlan, pruned: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        if self.settings.growth != "random":
            assert isinstance(plan.work, TopGradients)
            return plan.work.strongest(sums["gradient"].mean())
        generator, filters = numpy_generator(self.context.seed, "growth", plan.round), self._filters(pruned)
        if filters is None:
            return random_inactive(self.space, plan.swap_counts, generator)
        return random_inactive_in_filters(self.space, filters, len(pruned), generator)

    def grown_values(self, values: Tensor, grown: Tensor) -> Tensor:
        """0, or with ``extrusion_target: mean`` the filter's mean, which leaves the network's function unchanged."""
        return self._deviation().centres(values)[grown]

    def metrics(self, plan: RoundPlan, values: Tensor) -> dict[str, Tensor]:
        """Norms of the marked weights' deviation before and after the round; ``extrusion/shrinkage`` is their ratio."""
        if plan.marked is None:
            return {}
        deviation = self._deviation()
        norms = [deviation.of(state)[plan.marked].norm() for state in (plan.values, values)]
        old, new = torch.stack(norms).double()
        return {
            "extrusion/norm_before": old,
            "extrusion/norm_after": new,
            "extrusion/shrinkage": torch.where(old == 0, 0.0, new / old),
        }
