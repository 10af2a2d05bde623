"""What methods that prune and grow a few weights in every adjustment have in common."""

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.methods.base import Collection, LocalWork, Method, MethodContext, Upload
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask, ParameterSpace, Slice
from fedmef_dist.sparsity.allocation import Allocation, layer_counts, random_mask
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.selection import largest, row_largest, smallest


class SparseSettings(Settings):
    """Keys of every method that trains with a mask."""

    density: float = Field(0.1, gt=0, le=1, description="active share of ALL parameters")
    allocation: Allocation = Field("erk", description="how the density is shared out to layers")


class SwappingSettings(SparseSettings):
    """Keys of every method that swaps weights on the cosine schedule."""

    adjust_every: int = Field(10, ge=1, description="rounds between two adjustments of the mask")
    adjust_until: int = Field(300, ge=1, description="round at which the share of swapped weights reaches 0")
    adjust_rate: float = Field(0.4, ge=0, le=1, description="share of a layer's weights swapped at round 0")

    def schedule(self) -> AdjustmentSchedule:
        """When and how much is swapped."""
        return AdjustmentSchedule(self.adjust_every, self.adjust_until, self.adjust_rate)


SparseSettingsT = TypeVar("SparseSettingsT", bound=SparseSettings)


class RandomStart(Method[SparseSettingsT]):
    """A method whose first mask is random, with the allocation's exact count in every layer.

    Attributes:
        counts: active weights of each layer.
    """

    Settings: ClassVar[type[SparseSettings]] = SparseSettings

    def __init__(self, settings: SparseSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, preparation: Preparation) -> Mask:
        """Random, with exactly the layers' counts."""
        return random_mask(self.space, self.counts, preparation.generator("mask"))


def spare_counts(layers: Sequence[Slice], counts: Sequence[int], share: float) -> list[int]:
    """floor(share * a_l) of every layer, no more than what its filters can spare.

    Args:
        layers: the prunable layers.
        counts: active weights of each, a_l.
        share: of the active weights.
    """
    return [
        min(int(share * count), count - layer.rows * layer.filter_floor)
        for layer, count in zip(layers, counts, strict=True)
    ]


def swap_counts(layers: Sequence[Slice], counts: Sequence[int], share: float) -> list[int]:
    """xi_l: :func:`spare_counts`, and no more than what a layer has inactive."""
    return [
        min(spare, layer.size - count)
        for layer, count, spare in zip(layers, counts, spare_counts(layers, counts, share), strict=True)
    ]


def prunable_magnitude(space: ParameterSpace, magnitude: Tensor) -> Tensor:
    """The magnitude of what may be pruned, float32 (n_prunable,).

    Infinite where a weight is inactive, or among the strongest of its filter that the filter's floor protects.

    Args:
        space: the parameter space with its current mask.
        magnitude: float32 (n_prunable,), at least 0.
    """
    inactive = ~space.mask.active
    # A filter's floor is of active weights, those of exactly 0 among them.
    candidates, protectable = magnitude.masked_fill(inactive, torch.inf), magnitude.masked_fill(inactive, -1)
    for layer in space.layers:
        if layer.filter_floor:
            kept = row_largest(protectable[layer.start : layer.stop].view(layer.rows, -1), layer.filter_floor)
            candidates[layer.start + kept] = torch.inf
    return candidates


def weakest(space: ParameterSpace, magnitude: Tensor, counts: Sequence[int]) -> Tensor:
    """Positions (int64) of the ``counts`` active weights of smallest magnitude in each layer.

    No filter falls below its floor.

    Args:
        space: the parameter space with its current mask.
        magnitude: float32 (n_prunable,), at least 0.
        counts: how many of each layer.
    """
    candidates = prunable_magnitude(space, magnitude)
    return torch.cat(
        [
            layer.start + smallest(candidates[layer.start : layer.stop], count)
            for layer, count in zip(space.layers, counts, strict=True)
        ]
    )


def strongest_inactive(space: ParameterSpace, scores: Tensor, counts: Sequence[int]) -> Tensor:
    """Positions (int64) of the ``counts`` inactive weights of largest score in each layer.

    Scores are float32 (n_prunable,), at least 0.
    """
    # An active weight must never win, not even against a score of 0.
    scores = scores.masked_fill(space.mask.active, -1)
    return torch.cat(
        [
            layer.start + largest(scores[layer.start : layer.stop], count)
            for layer, count in zip(space.layers, counts, strict=True)
        ]
    )


class TopGradients(LocalWork):
    """After its training a client sends the largest gradients of inactive weights, as the collection ``gradient``.

    Args:
        space: the parameter space.
        counts: how many of each layer.
        batches: on how many fresh batches the gradient is taken.
    """

    def __init__(self, space: ParameterSpace, counts: Sequence[int], batches: int) -> None:
        self.space, self.counts, self.gradient_batches = space, counts, batches

    @property
    def collection(self) -> Collection:
        """What the round collects of it."""
        return Collection("gradient", self.counts)

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The top gradients: position and value."""
        assert gradient is not None
        positions = strongest_inactive(self.space, gradient.abs(), self.counts)
        return {"gradient": Upload(positions, gradient[positions])}
