"""FLASH.

Babakniya, Kundu, Prakash, Niu, Avestimehr: "Revisiting Sparsity Hunting in Federated Learning: Why does Sparsity
Consensus Matter?", TMLR 2023, arXiv 2208.13092. Before the first round a few clients train sparsely from a random mask
and move weights between layers; the server averages the layers' densities that they end with and draws a mask with them
(stage 1). Then the mask stays (SPDST), or clients go on changing it every few rounds, and the server takes the largest
aggregated weights, as many in each layer as clients have on average (JMWST).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.data.batches import steps_per_epoch
from fedmef_dist.methods.base import Method, MethodContext, Received, holders
from fedmef_dist.methods.client_masks import before_others, prune_to_counts, union_of_masks
from fedmef_dist.methods.preparation import Preparation, Training
from fedmef_dist.methods.swapping import SparseSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import Allocation, keep_largest_of_all, layer_counts, random_mask, share_out
from fedmef_dist.sparsity.swaps import random_inactive, spare_counts, weakest
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.encodings import WithMask
from fedmef_dist.wire.ranges import small
from fedmef_dist.wire.traffic import Upload, at_positions, whole

_WEIGHTS, _DENSITIES = "weights", "densities"
# A layer without any magnitude still takes part in the sharing out.
_TINY = 1e-12


class FlashSettings(SparseSettings):
    """Section ``method`` with ``name: flash``."""

    name: Literal["flash"] = Field("flash", description="layer densities from a few clients' sparse training")
    allocation: Allocation = Field("uniform", description="how the density is shared out in those clients' first mask")
    variant: Literal["spdst", "jmwst"] = Field("spdst", description="the mask stays, or clients change it on the way")
    initial_epochs: int = Field(
        10, ge=0, le=10**5, description="passes over its samples that a client of stage 1 trains; 0: nobody is asked"
    )
    prune_rate: float = Field(
        0.25, ge=0, lt=1, description="share of a layer's weights that a client moves; falls to 0 over its round"
    )
    adjust_every: int = Field(1, ge=1, description="jmwst: rounds between two adjustments of the mask")
    adjust_until: int | None = Field(None, ge=1, description="jmwst: last round that may adjust; null: the last round")
    average: Literal["all", "holders"] = Field(
        "all", description="jmwst: over all clients, an absent weight being 0, or over those that have the weight"
    )

    @model_validator(mode="after")
    def _keys_fit_the_variant(self) -> "FlashSettings":
        if self.variant == "spdst" and self.average != "all":
            raise ValueError("average is given although clients' masks do not differ (variant: spdst); leave it out")
        return self

    def adjusts(self, round: int) -> bool:
        """Whether clients change their masks in the round."""
        due = self.variant == "jmwst" and round % self.adjust_every == 0
        return due and (self.adjust_until is None or round <= self.adjust_until)


class SparseTraining(LocalWork):
    """A client moves weights between layers at the end of each pass but the last; of a single one, in its middle.

    In each layer the share ``rate`` of smallest magnitude goes; as many come, in each layer in proportion to the mean
    magnitude of what has stayed there, at random positions. The share falls linearly to 0 over the round's steps.

    Args:
        space: the parameter space.
        seed, round: of the draws.
        epochs: passes of the round.
        rate: the share at the start.
        mask: the client's first mask; None: that of the round.
    """

    def __init__(
        self, space: ParameterSpace, seed: int, round: int, *, epochs: int, rate: float, mask: Mask | None = None
    ) -> None:
        self.space, self.seed, self.round = space, seed, round
        self.epochs, self.rate, self.mask = epochs, rate, mask

    def begin(self, client: LocalClient) -> None:
        """Takes up the first mask."""
        self.client = client.number
        if self.mask is not None:
            self.space.set_mask(self.mask.next(self.mask.active))

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Moves weights where a pass ends."""
        once = steps // self.epochs
        ends = step == steps // 2 if self.epochs == 1 else (step + 1) % once == 0 and step + 1 < steps
        if ends:
            self._move(step, self.rate * (1 - step / steps))
        return rate

    def _move(self, step: int, share: float) -> None:
        space, magnitude = self.space, self.space.values[: self.space.n_prunable].abs()
        leaving = spare_counts(space.layers, space.layer_counts(), share)
        active = space.mask.active.clone()
        active[weakest(space, magnitude, leaving)] = False
        means = [
            float(magnitude[layer.start : layer.stop][active[layer.start : layer.stop]].double().mean()) + _TINY
            for layer in space.layers
        ]
        if not all(map(isfinite, means)):
            return  # training has diverged: the server will refuse what comes of it
        space.set_mask(space.mask.next(active))
        counts = space.layer_counts()
        free = [layer.size - count for layer, count in zip(space.layers, counts, strict=True)]
        coming = share_out(means, sum(leaving), [0] * len(free), free)
        generator = numpy_generator(self.seed, "flash", self.round, self.client, step)
        active = active.clone()
        active[random_inactive(space, coming, generator)] = True
        space.set_mask(space.mask.next(active))

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The weights with their positions, and the layers' densities; a round collects what it needs of them."""
        index, space = self.space.mask.index, self.space
        shares = [count / layer.size for layer, count in zip(space.layers, space.layer_counts(), strict=True)]
        densities = torch.tensor(shares, device=space.values.device)
        return {_WEIGHTS: Upload(index, space.values[index]), _DENSITIES: Upload(None, densities)}


class Flash(Method[FlashSettings]):
    """A mask whose layer densities clients have found."""

    Settings: ClassVar[type[FlashSettings]] = FlashSettings
    keeps_counts = False

    def __init__(self, settings: FlashSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.first_counts = layer_counts(space, settings.density, settings.allocation)
        self.total = sum(self.first_counts)

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Stage 1. The weights are those of the start: what its clients trained is forgotten.

        Raises:
            UserError: no client answers, or every client's training leaves the range of finite numbers.
        """
        first = Mask(random_mask(self.space, self.first_counts, preparation.generator("mask")))
        if not self.settings.initial_epochs:
            return first.active
        densities = self._ask(preparation, first)
        sizes = [layer.size for layer in self.space.layers]
        found = [density * size for density, size in zip(densities.tolist(), sizes, strict=True)]
        return random_mask(self.space, self._counts(found), preparation.generator("flash mask"))

    def _ask(self, preparation: Preparation, first: Mask) -> Tensor:
        """The mean of the layers' densities that the clients of a cohort end with, float32 (layers,)."""
        cohort, epochs = preparation.cohort, self.settings.initial_epochs
        wanted = whole(_DENSITIES, small(len(self.space.layers)))
        preparation.send_model(first, len(cohort.asked))
        batches = steps_per_epoch(cohort.samples, self.context.batch_size)
        counts = Training(self.first_counts, epochs * int(cohort.samples.sum()), epochs * int(batches.sum()))
        preparation.costs.trainings.append(counts)
        if preparation.rehearses:
            preparation.count_collection(wanted)
            shares = [count / layer.size for layer, count in zip(self.space.layers, self.first_counts, strict=True)]
            return torch.tensor(shares)
        work = SparseTraining(
            self.space, self.context.seed, 0, epochs=epochs, rate=self.settings.prune_rate, mask=first
        )
        values = preparation.values.clone()
        values[: self.space.n_prunable] *= first.active

        def train(client: int) -> Tensor:
            steps = epochs * steps_per_epoch(preparation.samples_of(client), self.context.batch_size)
            report = preparation.client.train(
                RoundPlan(0, values, work),
                preparation.client_batches(client, epochs),
                steps,
                self.context.base_rate,
                LocalClient(client),
                waits=preparation.client.may_lack_room,
            )
            densities = report.uploads[_DENSITIES].values
            assert densities is not None
            # What a client has learned does not travel, so nobody else looks whether it is sane.
            return densities if report.values.isfinite().all() else densities * torch.nan

        return preparation.average(wanted, train)

    def _counts(self, wanted: Sequence[float]) -> list[int]:
        """Active weights of each layer, in proportion to ``wanted``, with the density's exact total."""
        floors = [layer.floor for layer in self.space.layers]
        return share_out(wanted, self.total, floors, [layer.size for layer in self.space.layers])

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """In an adjusting round clients train sparsely, and send their weights with positions."""
        if not self.settings.adjusts(round):
            return RoundPlan(round, values)
        work = SparseTraining(
            self.space,
            self.context.seed,
            round,
            epochs=self.context.local_epochs,
            rate=self.settings.prune_rate,
        )
        counts = self.space.layer_counts()
        weights = at_positions(_WEIGHTS, self.space, counts, WithMask(), has_votes=True, varies=True)
        return RoundPlan(round, values, work, collections=(weights,), returns_weights=False, adjusts=True)

    def part(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """A client moves the weights of its part, whose number stays."""
        if plan.returns_weights:
            return plan
        (weights,) = plan.collections
        return replace(plan, collections=(replace(weights, counts=self.space.layer_counts(mask)),))

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """In an adjusting round the average over the union of the clients' masks."""
        if plan.returns_weights:
            return received.average, None
        weights, held = received.sums[_WEIGHTS], holders(received.sums)
        assert weights.votes is not None
        union = union_of_masks(self.space, weights, held)
        if held is not None and int(union.count_nonzero()) < self.total:
            union = keep_largest_of_all(self.space, before_others(self.space, union, plan.values), self.total)
        if self.settings.average == "holders":
            merged = weights.mean_of_voters()
        else:
            merged = weights.mean() if held is None else weights.mean_over(held)
        values = received.average.clone()
        old = plan.values[: self.space.n_prunable]
        values[: self.space.n_prunable] = torch.where(weights.votes > 0, merged, old).masked_fill_(~union, 0)
        return values, union

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """The largest aggregated weights, as many in each layer as the clients' masks have on average."""
        share = sums[_WEIGHTS].share()
        wanted = [float(share[layer.start : layer.stop].sum()) for layer in self.space.layers]
        most = [int(self.space.mask.active[layer.start : layer.stop].count_nonzero()) for layer in self.space.layers]
        floors = [layer.floor for layer in self.space.layers]
        counts = share_out(wanted, self.total, floors, most)
        return prune_to_counts(self.space, values[: self.space.n_prunable].abs(), counts)
