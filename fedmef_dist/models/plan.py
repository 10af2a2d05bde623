"""Which form each part of a network keeps its activations in, as one plan that can be applied to the network."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedmef_dist.layers.activation_pruning import DENSE, Pruning
from fedmef_dist.layers.recompute import recomputed_blocks


@dataclass(frozen=True)
class MemoryPlan:
    """How a training step keeps what it needs for the backward pass.

    Attributes:
        layers: by name, how a convolution or linear layer keeps its input: None as it is, 0 packed without loss where
            that takes less, p without the share p of smallest magnitude. Layers that are not named stay as they are.
        recomputed: names of the blocks that are computed again; the others keep what they need.
    """

    layers: dict[str, float | None]
    recomputed: frozenset[str]

    @property
    def is_exact(self) -> bool:
        """Whether all gradients are those of the plain network to the bit."""
        return not any(self.layers.values())


def plannable_layers(model: nn.Module) -> dict[str, Pruning]:
    """The layers whose form a plan may choose, by name, of a model that packs all it may and recomputes nothing."""
    found = {name: getattr(module, "pruning", DENSE) for name, module in model.named_modules()}
    return {name: pruning for name, pruning in found.items() if not pruning.is_dense}


def apply_plan(model: nn.Module, plan: MemoryPlan) -> None:
    """Gives every layer and block of ``model`` the form that the plan names.

    Args:
        model: built with activation pruning enabled, ratio 0, and recomputed blocks; changed in place.
        plan: made for such a model.
    """
    for name, ratio in plan.layers.items():
        layer: Any = model.get_submodule(name)
        layer.pruning = replace(layer.pruning, ratio=ratio or 0.0, packs=ratio == 0)
    for name, block in recomputed_blocks(model).items():
        block.recomputes = name in plan.recomputed
