"""FedTiny.

Huang, Zhang, Sun, Fang, Yuan, Wu: "Distributed Pruning Towards Tiny Neural Networks in Federated Learning", ICDCS
2023, arXiv 2212.01977. Clients choose the first mask among several candidates (adaptive batch normalisation selection);
then one block of the network at a time is pruned and grown, so that a client never sends more than the top gradients of
one block (progressive pruning).
"""

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.candidate_selection import CandidateSelection, candidate_counts
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.swapping import SwappingSettings, TopGradients
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, magnitude_mask
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import swap_counts, weakest
from fedmef_dist.sums.position_sum import Sums

Granularity = Literal["block", "layer", "entire"]


class FedTinySettings(SwappingSettings):
    """Section ``method`` with ``name: fedtiny``."""

    name: Literal["fedtiny"] = Field("fedtiny", description="chosen first mask, then one block pruned at a time")
    adjust_until: int = Field(100, ge=1, description="round at which the share of swapped weights reaches 0")
    adjust_rate: float = Field(0.3, ge=0, le=1, description="share of a layer's weights swapped at round 0")
    candidates: int = Field(8, ge=1, description="first masks among which clients choose; 1: the allocation's own")
    granularity: Granularity = Field("block", description="what one adjustment swaps: a block, a layer or everything")
    gradient_batches: int = Field(1, ge=1, description="batches for the gradient of inactive weights")


def block_of(layer: str, granularity: Granularity) -> str:
    """What a layer is adjusted with.

    A block is the module whose name, inside the network, ends with the first numbers, as ``layer1.0`` of a ResNet,
    ``features.3`` of a MobileNet, ``blocks.0`` of the GPT; where none is a number, the first that ends in a digit, as
    ``encoder.layers.encoder_layer_0`` of a vision transformer. The layer's own name does not count: a layer outside
    of such modules, as a stem, is a block of its own.

    Args:
        layer: name of its weight.
        granularity: block, layer or entire.
    """
    if granularity == "entire":
        return ""
    module = layer.rpartition(".")[0]
    if granularity == "layer":
        return module
    owner = module.rpartition(".")[0]
    for pattern in (r"(?:\w+\.)*?\d+(?:\.\d+)*(?=\.|$)", r"(?:\w+\.)*?\w*\d(?=\.|$)"):
        if found := re.match(pattern, owner):
            return found.group()
    return module


def turns(layers: Sequence[str], granularity: Granularity) -> list[set[int]]:
    """Which layers (their places) are adjusted together, in the order of their turns: from output to input."""
    blocks: dict[str, set[int]] = {}
    for place, layer in enumerate(layers):
        blocks.setdefault(block_of(layer, granularity), set()).add(place)
    return list(reversed(blocks.values()))


class FedTiny(Method[FedTinySettings]):
    """Clients choose the first mask; adjustments take blocks in turn."""

    Settings: ClassVar[type[FedTinySettings]] = FedTinySettings

    def __init__(self, settings: FedTinySettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.schedule = settings.schedule()
        self.turns = turns([layer.name for layer in space.layers], settings.granularity)
        self.counts = layer_counts(space, settings.density, settings.allocation)

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """The candidate of lowest loss; each keeps the start weights of largest magnitude."""
        generator = preparation.generator("candidates")
        candidates = [
            magnitude_mask(self.space, preparation.values, counts)
            for counts in candidate_counts(self.space, self.counts, self.settings.candidates, generator)
        ]
        if len(candidates) == 1:
            return candidates[0]
        return CandidateSelection(self.space, candidates, preparation).choose()

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """In an adjusting round one block has its turn."""
        if not self.schedule.adjusts(round):
            return RoundPlan(round, values)
        turn = self.turns[(round // self.schedule.every - 1) % len(self.turns)]
        share = self.schedule.share(round)
        everywhere = swap_counts(self.space.layers, self.space.layer_counts(), share)
        counts = [count if place in turn else 0 for place, count in enumerate(everywhere)]
        order = GrowthOrder(self.context.seed, round)
        work = TopGradients(self.space, counts, self.settings.gradient_batches, order=order)
        return RoundPlan(round, values, work, collections=work.collections, adjusts=True, swap_counts=counts)

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """Prunes the block's weights of smallest magnitude, grows those of largest aggregated gradient."""
        magnitude = values[: self.space.n_prunable].abs()
        pruned = weakest(self.space, magnitude, plan.swap_counts)
        assert isinstance(plan.work, TopGradients)
        grown = plan.work.strongest(sums["gradient"].mean())
        return self.space.mask.swapped(pruned, grown)
