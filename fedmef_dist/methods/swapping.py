"""What methods that prune and grow a few weights in every adjustment have in common."""

from collections.abc import Sequence
from math import inf
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.plan import LocalClient, LocalWork
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import Allocation, even_mask, layer_counts, random_mask
from fedmef_dist.sparsity.filter_swaps import strongest_inactive_in_filters
from fedmef_dist.sparsity.growth import GrowthOrder, channel_normalised
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.swaps import strongest_inactive
from fedmef_dist.wire.encodings import InFilters
from fedmef_dist.wire.traffic import Collection, Upload, at_positions


class SparseSettings(Settings):
    """Keys of every method that trains with a mask."""

    density: float = Field(0.1, gt=0, le=1, description="active share of ALL parameters")
    allocation: Allocation = Field("erk", description="how the density is shared out to layers")


class RandomStartSettings(SparseSettings):
    """Keys of every method whose first mask is random."""

    first_mask: Literal["layer", "even"] = Field(
        "layer", description="a layer's active weights anywhere in it, or spread evenly over its filters"
    )


class SwappingSettings(SparseSettings):
    """Keys of every method that swaps weights on the cosine schedule."""

    adjust_every: int = Field(10, ge=1, description="rounds between two adjustments of the mask")
    adjust_until: int = Field(300, ge=1, description="round at which the share of swapped weights reaches 0")
    adjust_rate: float = Field(0.4, ge=0, le=1, description="share of a layer's weights swapped at round 0")

    def schedule(self) -> AdjustmentSchedule:
        """When and how much is swapped."""
        return AdjustmentSchedule(self.adjust_every, self.adjust_until, self.adjust_rate)


RandomStartSettingsT = TypeVar("RandomStartSettingsT", bound=RandomStartSettings)


class RandomStart(Method[RandomStartSettingsT]):
    """A method whose first mask is random, with the allocation's exact count in every layer.

    Attributes:
        counts: active weights of each layer.
    """

    Settings: ClassVar[type[RandomStartSettings]] = RandomStartSettings

    def __init__(self, settings: RandomStartSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Random, with exactly the layers' counts; spread evenly over filters if the settings say so."""
        draw = even_mask if self.settings.first_mask == "even" else random_mask
        return draw(self.space, self.counts, preparation.generator("mask"))


class TopGradients(LocalWork):
    """After its training a client sends the largest gradients of inactive weights, as the collection ``gradient``.

    Args:
        space: the parameter space.
        counts: how many of each layer.
        batches: on how many fresh batches the gradient is taken.
        summed: take it from the sum over the steps of the training instead, whose magnitudes are compared channel by
            channel (:func:`channel_normalised`).
        filters: int64 (filters,), how many of each filter where that is known beforehand: only those are candidates.
        order: of weights whose gradients are equal.
    """

    def __init__(
        self,
        space: ParameterSpace,
        counts: Sequence[int],
        batches: int,
        *,
        summed: bool = False,
        filters: Tensor | None = None,
        order: GrowthOrder | None = None,
    ) -> None:
        self.space, self.counts, self.summed, self.filters = space, counts, summed, filters
        self.order, self._client = order or GrowthOrder(), -1
        self.gradient_batches = 0 if summed else batches
        self.dense_batches = inf if summed else 0
        self.held = space.n_prunable if summed else 0
        self._encoding = None if filters is None else InFilters(space, filters)

    @property
    def collections(self) -> tuple[Collection, ...]:
        """What the round collects of it; nothing where there is no gradient to choose from."""
        if not self.summed and not self.gradient_batches:
            return ()
        return (at_positions("gradient", self.space, self.counts, self._encoding),)

    def begin(self, client: LocalClient) -> None:
        """A new sum for each client."""
        self._client = client.number
        if self.summed:
            self._sum = torch.zeros_like(self.space.gradient[: self.space.n_prunable])

    def prepare_step(self, step: int, steps: int, rate: float) -> float | Tensor:
        """Adds up the gradient."""
        if self.summed:
            self._sum += self.space.gradient[: self.space.n_prunable]
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The top gradients: position and value."""
        if not self.collections:
            return {}
        found = self._sum if self.summed else gradient
        assert found is not None
        positions = self._strongest(found, self.order.of(self._client))
        return {"gradient": Upload(positions, found[positions])}

    def strongest(self, gradient: Tensor) -> Tensor:
        """Positions (int64) of the inactive weights that the server's gradient (float32 (n_prunable,)) makes grow."""
        return self._strongest(gradient, self.order.of())

    def _strongest(self, gradient: Tensor, generator: np.random.Generator) -> Tensor:
        scores = channel_normalised(self.space, gradient) if self.summed else gradient.abs()
        if self.filters is None:
            return strongest_inactive(self.space, scores, self.counts, generator)
        return strongest_inactive_in_filters(self.space, scores, self.filters, sum(self.counts), generator)
