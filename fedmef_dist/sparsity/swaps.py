"""Which weights leave a mask and which join it in one adjustment: pure functions over mask and scores.

Here every layer keeps its number of active weights; ``filter_swaps.py`` is for swaps that keep every filter's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.sparsity.selection import largest_of_each, row_largest, smallest
from fedmef_dist.sparsity.space import ParameterSpace, Slice


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


def strongest_inactive(
    space: ParameterSpace, scores: Tensor, counts: Sequence[int], generator: np.random.Generator | None = None
) -> Tensor:
    """Positions (int64) of the ``counts`` inactive weights of largest score in each layer.

    So a weight with a score of 0 grows only where no other is left.

    Args:
        space: the parameter space with its current mask.
        scores: float32 (n_prunable,), at least 0.
        counts: how many of each layer.
        generator: draws which of equal scores grow (:class:`GrowthOrder`); None: the first ones, which all lie in the
            layer's first filters.
    """
    # An active weight must never win, not even against a score of 0.
    scores = scores.masked_fill(space.mask.active, -1)
    chosen = largest_of_each([scores[layer.start : layer.stop] for layer in space.layers], counts, generator)
    return torch.cat([layer.start + positions for layer, positions in zip(space.layers, chosen, strict=True)])


def random_inactive(space: ParameterSpace, counts: Sequence[int], generator: np.random.Generator) -> Tensor:
    """Positions (int64) of ``counts`` inactive weights of each layer, drawn."""
    return strongest_inactive(space, drawn(space, generator), counts)


def drawn(space: ParameterSpace, generator: np.random.Generator) -> Tensor:
    """A random score of every prunable weight, float64 (n_prunable,) in [0, 1); the same on every device."""
    return torch.from_numpy(generator.random(space.n_prunable)).to(space.values.device)
