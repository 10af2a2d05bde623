"""What methods that prune and grow a few weights in every adjustment have in common."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.plan import LocalWork
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import Allocation, layer_counts, random_mask
from fedmef_dist.sparsity.schedule import AdjustmentSchedule
from fedmef_dist.sparsity.swaps import strongest_inactive
from fedmef_dist.wire.traffic import Collection, Upload, at_positions


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

    def __init__(self, settings: SparseSettingsT, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Random, with exactly the layers' counts."""
        return random_mask(self.space, self.counts, preparation.generator("mask"))


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
        return at_positions("gradient", self.space, self.counts)

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The top gradients: position and value."""
        assert gradient is not None
        positions = strongest_inactive(self.space, gradient.abs(), self.counts)
        return {"gradient": Upload(positions, gradient[positions])}
