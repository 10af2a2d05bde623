"""PruneFL.

Jiang, Wang, Valls, Ko, Lee, Leung, Tassiulas: "Model Pruning Enables Efficient Federated Learning on Edge Devices",
IEEE TNNLS 2022, arXiv 1909.12326. A client prunes before the first round; then every few rounds the clients send
squared gradients of all prunable weights, active or not. The largest active weights stay; all other positions compete
for a place by how much the loss falls a unit of time: g_j^2 / t_j (Algorithm 2), so the model finds its own size.

As in the authors' code (github.com/jiangyuang/PruneFL), the squares are of all rounds since the last adjustment, and
those of parameters that are never pruned are part of the bar that a rival must pass.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.swapping import SparseSettings
from fedmef_dist.methods.weight_pruning_by_client import ClientPruning
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import spare_counts, strongest_inactive, swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.ranges import small
from fedmef_dist.wire.traffic import Collection, Upload, at_positions, whole

# Of each prunable weight, and of all other parameters together; a client notes since which adjustment it adds up.
_SQUARES, _REST, _SINCE = "squared_gradient", "squared_gradient_of_rest", "since"
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
    accumulate: Literal["interval", "round"] = Field(
        "interval",
        description="squared gradients of all rounds since the last adjustment, which stay with a client meanwhile, or "
        "of the adjusting round alone",
    )
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

    def adjusts_from(self, round: int, rounds: int) -> bool:
        """Whether this round, or a later one of so many, ends with an adjustment."""
        due = -(-round // self.adjust_every) * self.adjust_every
        return due <= rounds and self.adjusts(due)


class SquaredGradients(LocalWork):
    """A client adds up the squared gradients of all parameters over its training.

    Args:
        space: the parameter space.
        adjustments: how many have been; what a client kept from before the last one is forgotten.
        collects: whether the round collects the sums.
    """

    dense_batches = float("inf")

    def __init__(self, space: ParameterSpace, adjustments: int = 0, *, collects: bool = True) -> None:
        self.space, self.adjustments, self.collects = space, adjustments, collects
        # The sums, and the gradient at inactive positions.
        self.held = 2 * space.n_prunable - space.mask.count + 1

    @staticmethod
    def kept(space: ParameterSpace) -> Sequence[KeptTensor]:
        """The sums, and since which adjustment they are."""
        return KeptTensor(_SQUARES, space.n_prunable), KeptTensor(_REST, 1), KeptTensor(_SINCE, 1)

    @property
    def collections(self) -> tuple[Collection, ...]:
        """A number for each prunable weight, and one for all else."""
        if not self.collects:
            return ()
        squares = at_positions(_SQUARES, self.space, [layer.size for layer in self.space.layers])
        return squares, whole(_REST, small(1))

    def begin(self, client: LocalClient) -> None:
        """Goes on with the client's sums, or begins new ones."""
        kept = client.kept or {one.name: self.space.values.new_zeros(one.size) for one in self.kept(self.space)}
        self._squares, self._rest = kept[_SQUARES], kept[_REST]
        if int(kept[_SINCE]) != self.adjustments:
            self._squares.zero_()
            self._rest.zero_()
            kept[_SINCE].fill_(self.adjustments)

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Adds the step's squared gradients."""
        gradient, rest = self.space.gradient.split([self.space.n_prunable, self.space.n_dense])
        self._squares.addcmul_(gradient, gradient)
        self._rest += rest.square().sum()
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The sums, float32 (n_prunable,) and (1,); NaN stays NaN, so that the client is refused."""
        if not self.collects:
            return {}
        positions = torch.arange(self._squares.numel(), device=self._squares.device)
        return {
            _SQUARES: Upload(positions, self._squares.clamp(max=_LARGEST_GAIN)),
            _REST: Upload(None, self._rest.clamp(max=_LARGEST_GAIN)),
        }


def compete(
    gain: Tensor,
    time: Tensor,
    kept: Tensor,
    other_gain: float,
    other_time: float,
    most: int,
    generator: np.random.Generator | None = None,
) -> Tensor:
    """Which positions are active (bool (n,)): those kept, and the best of the others while they pay (Algorithm 2).

    In descending order of gain over time a position joins while its own ratio exceeds that of the model before it: the
    gains of all chosen and of what is never pruned, over their times and ``other_time``.

    Args:
        gain: float64 (n,), g_j^2.
        time: float64 (n,), t_j, above 0.
        kept: bool (n,), at least one; they are chosen first.
        other_gain: g^2 of what is never pruned.
        other_time: T_0, of what is computed anyway.
        most: how many may be active.
        generator: draws the order of equal ratios; None: by position.
    """
    ratio, rivals, count = gain / time, (~kept).nonzero().flatten(), int(kept.count_nonzero())
    if generator is not None:
        rivals = rivals[torch.from_numpy(generator.permutation(len(rivals))).to(rivals.device)]
    rivals = rivals[ratio[rivals].argsort(descending=True, stable=True)]
    ranking = torch.cat([kept.nonzero().flatten(), rivals])
    before = (other_gain + gain[ranking].cumsum(0)) / (other_time + time[ranking].cumsum(0))
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

    @classmethod
    def begins_alike(cls, settings: PruneFlSettings, before: int, rounds: int) -> bool:
        """Not where clients did not add up for an adjustment that was beyond the run's end, and now is to come."""
        last = min(before, rounds)
        missed = settings.adjusts_from(last, rounds) and not settings.adjusts_from(last, before)
        return settings.accumulate == "round" or not missed

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
            self._adjusted_by_client,
            adjustments=self.settings.initial_adjustments,
            steps=self.settings.initial_steps,
            rate=self.context.base_rate,
        )
        return pruning.prune(preparation, Mask(mask)).active

    def _adjusted_by_client(self, values: Tensor, uploads: dict[str, Upload]) -> Tensor:
        squares, rest = uploads[_SQUARES].values, uploads[_REST].values
        assert squares is not None
        assert rest is not None
        return self._adjusted(values, squares, float(rest), self._contested(0), 0)

    def kept(self) -> Sequence[KeptTensor]:
        """What a client has added up since the last adjustment."""
        return SquaredGradients.kept(self.space) if self.settings.accumulate == "interval" else ()

    def _contested(self, round: int) -> list[int]:
        """How many of each layer's active weights do not keep their place by magnitude."""
        share, counts = self.settings.share(round), self.space.layer_counts()
        rule = swap_counts if self.settings.fixed_density else spare_counts
        return rule(self.space.layers, counts, share)

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """Squared gradients of everything, which an adjusting round collects."""
        settings, adjusts = self.settings, self.settings.adjusts(round)
        adds_up = settings.accumulate == "interval" and settings.adjusts_from(round, self.context.rounds)
        if not (adjusts or adds_up):
            return RoundPlan(round, values)
        work = SquaredGradients(self.space, (round - 1) // settings.adjust_every, collects=adjusts)
        contested = self._contested(round) if adjusts else []
        return RoundPlan(round, values, work, collections=work.collections, adjusts=adjusts, swap_counts=contested)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """The competition, or with ``fixed_density`` the swap."""
        squares, rest = sums[_SQUARES].mean(), sums[_REST].mean()
        return self._adjusted(values, squares, float(rest), plan.swap_counts, plan.round)

    def _adjusted(self, values: Tensor, squares: Tensor, rest: float, contested: list[int], round: int) -> Tensor:
        space, generator = self.space, GrowthOrder(self.context.seed, round).of()
        weak = weakest(space, values[: space.n_prunable].abs(), contested)
        if self.settings.fixed_density:
            return space.mask.swapped(weak, strongest_inactive(space, squares, contested, generator))
        kept = space.mask.active.clone()
        kept[weak] = False
        time, other_time = self._times()
        return compete(squares.double(), time, kept, rest, other_time, self.most, generator)

    def _times(self) -> tuple[Tensor, float]:
        """t_j of every position, float64 (n_prunable,), and T_0, in the same unit."""
        layers, device = self.space.layers, self.space.values.device
        sizes = torch.tensor([layer.size for layer in layers], device=device)
        if self.settings.layer_time == "uniform":
            return torch.ones(self.space.n_prunable, dtype=torch.float64, device=device), float(self.space.n_dense)
        flops = torch.tensor(self.context.layer_flops, dtype=torch.float64, device=device)
        return (flops / sizes).clamp(min=_LEAST_FLOPS).repeat_interleave(sizes), self.context.other_flops
