"""PruneFL.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: "Model Pruning Enables Efficient Federated Learning on Edge Devices",
IEEE TNNLS 2022, arXiv 1909.12326. A client prunes before the first round; then every few rounds the clients send
squared gradients of all prunable weights, active or not. The largest active weights stay; all other positions compete
for a place by how much the loss falls a unit of time: g_j^2 / t_j (Algorithm 2), so the model finds its own size.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.swapping import SparseSettings
from fedmef_dist.methods.weight_pruning_by_client import ClientPruning
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask
from fedmef_dist.sparsity.swaps import spare_counts, strongest_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.traffic import Upload, at_positions

_NAME = "squared_gradient"
# A weight that is used costs at least one multiply-add a sample.
_LEAST_FLOPS = 2.0
# A client's sum of squares counts as no more: what is beyond wins anyway, and neither fp16 nor the exact sum hold 2^16.
_LARGEST_GAIN = 2.0**15


class PruneFlSettings(SparseSettings):
    """Section ``method`` with ``name: prunefl``."""

    name: Literal["prunefl"] = Field("prunefl", description="adaptive pruning by squared gradients and time")
    max_density: float | None = Field(
        None, gt=0, le=1, description="largest active share of ALL parameters; null: any, the start's is `density`"
    )
    fixed_density: bool = Field(False, description="swap by squared gradients: every layer keeps its count")
    adjust_every: int = Field(50, ge=1, description="rounds between two adjustments of the mask")
    adjust_until: int | None = Field(None, ge=1, description="last round that may adjust; null: the last round")
    adjust_rate: float = Field(0.3, ge=0, lt=1, description="share of a layer's weights that may go at round 0")
    adjust_half_life: int = Field(10_000, ge=1, description="rounds in which that share halves")
    layer_time: Literal["flops", "uniform"] = Field("flops", description="what a weight costs: FLOPs, or all the same")
    initial: Literal["none", "client"] = Field("client", description="one client prunes before the first round")
    initial_adjustments: int = Field(5, ge=1, description="how often that client adjusts the mask")
    initial_steps: int = Field(20, ge=1, description="SGD steps that it makes before each of them")

    @model_validator(mode="after")
    def _densities_fit(self) -> "PruneFlSettings":
        if self.max_density is None:
            return self
        if self.fixed_density:
            raise ValueError("max_density is given although fixed_density is on; leave out one of the two")
        if self.density > self.max_density:
            raise ValueError(f"density {self.density:g} is above max_density {self.max_density:g}")
        return self

    def share(self, round: int) -> float:
        """delta_r = adjust_rate * 0.5^(r / half-life), the share of a layer's weights whose place is contested."""
        return self.adjust_rate * 0.5 ** (round / self.adjust_half_life)

    def adjusts(self, round: int) -> bool:
        """Whether the round ends with an adjustment."""
        return round % self.adjust_every == 0 and (not self.adjust_until or round <= self.adjust_until)


class SquaredGradients(LocalWork):
    """A client adds up the squared gradients of all positions over its training."""

    dense_batches = float("inf")

    def __init__(self, space: ParameterSpace) -> None:
        self.space, self.held = space, space.n_prunable
        self.collection = at_positions(_NAME, space, [layer.size for layer in space.layers])

    def begin(self, client: LocalClient) -> None:
        """A new sum for each client."""
        self._sum = torch.zeros_like(self.space.gradient[: self.space.n_prunable])

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Adds the step's squared gradients."""
        gradient = self.space.gradient[: self.space.n_prunable]
        self._sum.addcmul_(gradient, gradient)
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The sum, float32 (n_prunable,); NaN stays NaN, so that the client is refused."""
        positions = torch.arange(self._sum.numel(), device=self._sum.device)
        return {_NAME: Upload(positions, self._sum.clamp(max=_LARGEST_GAIN))}


def compete(gain: Tensor, time: Tensor, kept: Tensor, other_time: float, most: int) -> Tensor:
    """Which positions are active (bool (n,)): those kept, and the best of the others while they pay (Algorithm 2).

    In descending order of gain over time, ties by position, a position joins while its own ratio exceeds that of all
    chosen before it: their gains over their times and ``other_time``.

    Args:
        gain: float64 (n,), g_j^2.
        time: float64 (n,), t_j, above 0.
        kept: bool (n,), at least one; they are chosen first.
        other_time: T_0, of what is computed anyway.
        most: how many may be active.
    """
    ratio, rivals, count = gain / time, (~kept).nonzero().flatten(), int(kept.count_nonzero())
    rivals = rivals[ratio[rivals].argsort(descending=True, stable=True)]
    ranking = torch.cat([kept.nonzero().flatten(), rivals])
    before = gain[ranking].cumsum(0) / (other_time + time[ranking].cumsum(0))
    pays = ratio[rivals] > before[count - 1 : -1]
    joining = min(int(pays.cumprod(0).sum()), max(most - count, 0))
    active = kept.clone()
    active[rivals[:joining]] = True
    return active


class PruneFl(Method[PruneFlSettings]):
    """Keeps large weights, and of all others those whose squared gradient is worth their time."""

    Settings: ClassVar[type[PruneFlSettings]] = PruneFlSettings
    keeps_counts = False

    def __init__(self, settings: PruneFlSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.first_counts = layer_counts(space, settings.density, settings.allocation)
        self.most = space.n_prunable
        if settings.max_density is not None:
            self.most = round(settings.max_density * space.n_parameters) - space.n_dense

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Random, with the allocation's exact counts; then a client prunes it and trains the weights.

        Raises:
            UserError: its training leaves the range of finite numbers.
        """
        mask = random_mask(self.space, self.first_counts, preparation.generator("mask"))
        if self.settings.initial == "none":
            return mask
        pruning = ClientPruning(
            self.space,
            SquaredGradients(self.space),
            lambda values, uploads: self._adjusted(values, uploads[_NAME].values, self._contested(0)),
            adjustments=self.settings.initial_adjustments,
            steps=self.settings.initial_steps,
            rate=self.context.base_rate,
        )
        return pruning.prune(preparation, Mask(mask)).active

    def _contested(self, round: int) -> list[int]:
        """How many of each layer's active weights do not keep their place by magnitude."""
        share, counts = self.settings.share(round), self.space.layer_counts()
        rule = swap_counts if self.settings.fixed_density else spare_counts
        return rule(self.space.layers, counts, share)

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """In an adjusting round: squared gradients of everything."""
        if not self.settings.adjusts(round):
            return RoundPlan(round, values)
        work = SquaredGradients(self.space)
        contested = self._contested(round)
        return RoundPlan(round, values, work, collections=(work.collection,), adjusts=True, swap_counts=contested)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """The competition, or with ``fixed_density`` the swap."""
        return self._adjusted(values, sums[_NAME].mean(), plan.swap_counts)

    def _adjusted(self, values: Tensor, gain: Tensor | None, contested: list[int]) -> Tensor:
        assert gain is not None
        space = self.space
        weak = weakest(space, values[: space.n_prunable].abs(), contested)
        if self.settings.fixed_density:
            return space.mask.swapped(weak, strongest_inactive(space, gain, contested))
        kept = space.mask.active.clone()
        kept[weak] = False
        time, other_time = self._times()
        return compete(gain.double(), time, kept, other_time, self.most)

    def _times(self) -> tuple[Tensor, float]:
        """t_j of every position, float64 (n_prunable,), and T_0, in the same unit."""
        layers, device = self.space.layers, self.space.values.device
        sizes = torch.tensor([layer.size for layer in layers], device=device)
        if self.settings.layer_time == "uniform":
            return torch.ones(self.space.n_prunable, dtype=torch.float64, device=device), float(self.space.n_dense)
        flops = torch.tensor(self.context.layer_flops, dtype=torch.float64, device=device)
        return (flops / sizes).clamp(min=_LEAST_FLOPS).repeat_interleave(sizes), self.context.other_flops
