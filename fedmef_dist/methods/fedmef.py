"""FedMef.

Huang, Zhuang, Chen, Lyu: "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024, arXiv 2403.14737.
A random sparse model is trained from the start. Every few rounds the weights of smallest magnitude are marked, emptied
by the clients through budget-aware extrusion (section 3.2), pruned by the server, and replaced by the inactive weights
of largest aggregated gradient. Scaled activation pruning (section 3.3) lives in the layers.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.methods.base import MethodContext, Preferences, RoundPlan
from fedmef_dist.methods.extrusion import Deviation, Extrusion, Target
from fedmef_dist.methods.swapping import (
    RandomStart,
    SwappingSettings,
    TopGradients,
    strongest_inactive,
    swap_counts,
    weakest,
)
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums


class FedMefSettings(SwappingSettings):
    """Section ``method`` with ``name: fedmef``."""

    name: Literal["fedmef"] = Field("fedmef", description="federated dynamic pruning with little memory")
    extrusion: bool = Field(True, description="budget-aware extrusion in adjusting rounds; off for ablation")
    extrusion_lambda: float = Field(
        1.0, ge=0, description="strength of the penalty on marked weights; above 1 / (2 lr) it overshoots"
    )
    extrusion_target: Target = Field(
        "zero", description="empty marked weights towards 0 or towards their filter's mean"
    )
    marking: Literal["broadcast", "aggregate"] = Field(
        "broadcast", description="prune what was marked on the broadcast model, or rank again after aggregation"
    )
    gradient_batches: int = Field(1, ge=1, description="batches for the gradient of inactive weights")

    @model_validator(mode="after")
    def _extrusion_fits_marking(self) -> "FedMefSettings":
        if not self.extrusion and self.extrusion_lambda != FedMefSettings.model_fields["extrusion_lambda"].default:
            raise ValueError("extrusion_lambda is given although extrusion is off; leave out one of the two")
        return self


class FedMef(RandomStart[FedMefSettings]):
    """Prunes by magnitude what extrusion has emptied, grows by gradient."""

    Settings: ClassVar[type[FedMefSettings]] = FedMefSettings
    preferences = Preferences(norm="nsconv", activation_pruning=True)

    def __init__(self, settings: FedMefSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = settings.schedule()

    def plan(self, round_number: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: how many weights are swapped, which are marked, and what empties them."""
        if not self.schedule.adjusts(round_number):
            return RoundPlan()
        counts = swap_counts(self.space.layers, self.counts, self.schedule.share(round_number))
        marked = self._mark(values, counts)
        work = self._work(counts, marked)
        return RoundPlan(work, adjusts=True, collections=(work.collection,), swap_counts=counts, marked=marked)

    def _work(self, counts: list[int], marked: Tensor) -> TopGradients:
        settings = self.settings
        if not settings.extrusion:
            return TopGradients(self.space, counts, settings.gradient_batches)
        return Extrusion(
            self.space,
            counts,
            settings.gradient_batches,
            marked=marked,
            deviation=self._deviation(),
            strength=settings.extrusion_lambda,
            base_rate=self.context.base_rate,
        )

    def _deviation(self) -> Deviation:
        return Deviation(self.space, self.settings.extrusion_target)

    def _mark(self, values: Tensor, counts: list[int]) -> Tensor:
        return weakest(self.space, self._deviation().of(values).abs(), counts)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Mask:
        """Prunes the marked weights, grows the inactive ones of largest aggregated gradient."""
        assert plan.marked is not None
        pruned = plan.marked if self.settings.marking == "broadcast" else self._mark(values, plan.swap_counts)
        grown = strongest_inactive(self.space, sums["gradient"].mean().abs(), plan.swap_counts)
        return self.space.mask.swap(pruned, grown)

    def grown_values(self, values: Tensor, grown: Tensor) -> Tensor:
        """0, or with ``extrusion_target: mean`` the filter's mean, which leaves the network's function unchanged."""
        return self._deviation().centres(values)[grown]

    def metrics(self, plan: RoundPlan, before: Tensor, after: Tensor) -> dict[str, float]:
        """Norms of the marked weights' deviation before and after the round; ``extrusion/shrinkage`` is their ratio."""
        if plan.marked is None:
            return {}
        deviation = self._deviation()
        old, new = (deviation.of(values)[plan.marked].norm().item() for values in (before, after))
        return {
            "extrusion/norm_before": old,
            "extrusion/norm_after": new,
            "extrusion/shrinkage": new / old if old else 0.0,
        }
