"""SparsyFed.

Guastella, Sani, Iacob, Mora, Bellavista, Lane: "SparsyFed: Sparse Adaptive Federated Training", ICLR 2025, arXiv
2504.05153, algorithm 1. From a dense start, weights act as sign(theta) |theta|^alpha (``layers/powered.py``) and what a
layer keeps of its input for the backward pass is pruned as much as its weights are (``sap.share: weights``). After its
training a client keeps the weights of largest magnitude, over all layers together. The server averages plainly: who
does not keep a weight counts with 0. With alpha above 1 a weight of 0 has no gradient: masks settle by themselves. With
alpha 1 they do too, since what is inactive is not trained here.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, Preferences, Received, holders
from fedmef_dist.methods.fedavg import Dense
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest_of_all, layer_counts, share_out
from fedmef_dist.wire.traffic import Upload, at_positions

_WEIGHTS = "weights"


class SparsyFedSettings(Settings):
    """Section ``method`` with ``name: sparsyfed``."""

    name: Literal["sparsyfed"] = Field("sparsyfed", description="clients prune globally; weights act as powers")
    density: float = Field(0.1, gt=0, le=1, description="active share of ALL parameters of what a client sends")
    alpha: float = Field(1.25, ge=1, le=10, description="power as which a weight acts; 1: as it is")


class PrunedUpload(LocalWork):
    """Behind its training a client keeps ``total`` weights of largest magnitude, and sends those with their positions.

    No layer loses its last weight, no depthwise filter its last two.
    """

    def __init__(self, space: ParameterSpace, total: int) -> None:
        self.space, self.total = space, total

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The weights that it keeps."""
        magnitude = self.space.values[: self.space.n_prunable].abs()
        kept = keep_largest_of_all(self.space, magnitude.masked_fill(~self.space.mask.active, -1), self.total)
        index = kept.nonzero().flatten()
        return {_WEIGHTS: Upload(index, self.space.values[index])}


class SparsyFed(Dense[SparsyFedSettings]):
    """The plain average of what clients keep; its mask is the union of theirs."""

    Settings: ClassVar[type[SparsyFedSettings]] = SparsyFedSettings
    keeps_counts = False
    plain_steps = True
    preferences = Preferences(activation_pruning=True, pruned_share="weights")

    def __init__(self, settings: SparsyFedSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.total = sum(layer_counts(space, settings.density, "uniform"))

    def refuses_tiers(self) -> str | None:
        """Clients prune their part."""
        return None

    @classmethod
    def weight_power(cls, settings: SparsyFedSettings) -> float:
        """Alpha."""
        return settings.alpha

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """Clients prune in every round. How many weights of each layer one sends is its own; expected are as many as
        the layer has of those that are active.
        """
        return self._pruning(RoundPlan(round, values, returns_weights=False), self.space.mask)

    def part(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """A client whose part is above the density prunes it to the density; another one sends its part."""
        return self._pruning(plan, mask)

    def _pruning(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """The plan for clients that are sent this mask."""
        active, total = self.space.layer_counts(mask), min(self.total, mask.count)
        counts = share_out([max(count, 1) for count in active], total, [0] * len(active), active)
        weights = at_positions(_WEIGHTS, self.space, counts, varies=True)
        return replace(plan, work=PrunedUpload(self.space, total), collections=(weights,))

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """The average, in which a weight that a client has pruned is 0, and where it is not 0.

        With tiers those count that were sent a weight; one that was sent to nobody stays what it was.
        """
        weights, held, values = received.sums[_WEIGHTS], holders(received.sums), received.average.clone()
        if held is None:
            values[: self.space.n_prunable] = weights.mean()
        else:
            values[: self.space.n_prunable] = torch.where(
                held > 0, weights.mean_over(held), plan.values[: self.space.n_prunable]
            )
        active = values[: self.space.n_prunable] != 0
        return values, None if torch.equal(active, self.space.mask.active) else active

    def foreseen_mask(self, round: int) -> Tensor | None:
        """From the second round on as if all clients kept the same weights; in truth the union is larger at first."""
        if self.space.mask.count == self.total:
            return None
        return keep_largest_of_all(self.space, self.space.values[: self.space.n_prunable].abs(), self.total)
