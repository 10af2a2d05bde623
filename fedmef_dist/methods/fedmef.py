"""FedMef.

Huang, Zhuang, Chen, Lyu: "FedMef: Towards Memory-efficient Federated Dynamic Pruning", CVPR 2024, arXiv 2403.14737.
A random sparse model is trained from the start. Every few rounds the weights of smallest magnitude are marked, emptied
by the clients through budget-aware extrusion (section 3.2), pruned by the server, and replaced by the inactive weights
of largest aggregated gradient. Scaled activation pruning (section 3.3) lives in the layers.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.methods.base import LocalObjective, Method, RoundPlan, Swap
from fedmef_dist.methods.extrusion import Deviation, Extrusion, Target
from fedmef_dist.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace, Slice
from fedmef_dist.sparsity.allocation import Allocation, layer_counts, random_mask
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.selection import largest, row_largest, smallest


class FedMefSettings(Settings):
    """Section ``method`` with ``name: fedmef``."""

    name: Literal["fedmef"] = Field("fedmef", description="federated dynamic pruning with little memory")
    density: float = Field(0.1, gt=0, le=1, description="active share of ALL parameters")
    allocation: Allocation = Field("erk", description="how the density is shared out to layers")
    adjust_every: int = Field(10, ge=1, description="rounds between two adjustments of the mask")
    adjust_until: int = Field(300, ge=1, description="round at which the share of swapped weights reaches 0")
    adjust_rate: float = Field(0.4, ge=0, le=1, description="share of a layer's weights swapped at round 0")
    extrusion: bool = Field(True, description="budget-aware extrusion in adjusting rounds; off for ablation")
    extrusion_lambda: float = Field(1.0, ge=0, description="strength of the penalty on marked weights")
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


class FedMef(Method):
    """Prunes by magnitude what extrusion has emptied, grows by gradient."""

    def __init__(self, settings: FedMefSettings, space: ParameterSpace, base_rate: float) -> None:
        super().__init__(space)
        self.settings = settings
        self.base_rate = base_rate
        self.schedule = AdjustmentSchedule(settings.adjust_every, settings.adjust_until, settings.adjust_rate)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, generator: np.random.Generator) -> Mask:
        """Random, with the allocation's exact count in every layer."""
        return random_mask(self.space, self.counts, generator)

    def plan(self, round_number: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: how many weights are swapped, which are marked, and what empties them."""
        if not self.schedule.adjusts(round_number):
            return RoundPlan()
        share = self.schedule.share(round_number)
        counts = [
            self._swap_count(layer, share, count) for layer, count in zip(self.space.layers, self.counts, strict=True)
        ]
        deviation = Deviation(self.space, self.settings.extrusion_target)
        marked = self._mark(deviation.of(values).abs(), counts)
        objective = LocalObjective()
        if self.settings.extrusion:
            objective = Extrusion(self.space, marked, deviation, self.settings.extrusion_lambda, self.base_rate)
        return RoundPlan(objective, True, counts, self.settings.gradient_batches, marked)

    @staticmethod
    def _swap_count(layer: Slice, share: float, count: int) -> int:
        """xi_l, no more than what the layer's filters can spare and what it has inactive."""
        return min(int(share * count), layer.size - count, count - layer.rows * layer.filter_floor)

    def _mark(self, magnitude: Tensor, counts: list[int]) -> Tensor:
        """The active positions of smallest magnitude in each layer, sparing every filter's floor."""
        candidates = magnitude.masked_fill(~self.space.mask.active, torch.inf)
        for layer in self.space.layers:
            if layer.filter_floor:
                kept = row_largest(magnitude[layer.start : layer.stop].view(layer.rows, -1), layer.filter_floor)
                candidates[layer.start + kept] = torch.inf
        return torch.cat(
            [
                layer.start + smallest(candidates[layer.start : layer.stop], count)
                for layer, count in zip(self.space.layers, counts, strict=True)
            ]
        )

    def swap(self, plan: RoundPlan, values: Tensor, gradient: Tensor) -> Swap:
        """Prunes the marked weights, grows the inactive ones of largest aggregated gradient."""
        assert plan.marked is not None
        pruned = plan.marked
        if self.settings.marking == "aggregate":
            pruned = self._mark(
                Deviation(self.space, self.settings.extrusion_target).of(values).abs(), plan.swap_counts
            )
        scores = gradient.abs().masked_fill_(self.space.mask.active, -1)
        grown = torch.cat(
            [
                layer.start + largest(scores[layer.start : layer.stop], count)
                for layer, count in zip(self.space.layers, plan.swap_counts, strict=True)
            ]
        )
        return Swap(pruned, grown)

    def grown_values(self, values: Tensor, grown: Tensor) -> Tensor:
        """0, or with ``extrusion_target: mean`` the filter's mean, which leaves the network's function unchanged."""
        return Deviation(self.space, self.settings.extrusion_target).centres(values)[grown]

    def metrics(self, plan: RoundPlan, before: Tensor, after: Tensor) -> dict[str, float]:
        """Norm of the marked weights' deviation before and after the round, and ``extrusion/shrinkage``, their ratio."""
        if plan.marked is None:
            return {}
        deviation = Deviation(self.space, self.settings.extrusion_target)
        old, new = (deviation.of(values)[plan.marked].norm().item() for values in (before, after))
        return {
            "extrusion/norm_before": old,
            "extrusion/norm_after": new,
            "extrusion/shrinkage": new / old if old else 0.0,
        }
