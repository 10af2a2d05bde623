"""How many weights each layer may keep, and a first random choice of them."""

from collections.abc import Sequence
from math import ceil, prod
from typing import Literal

import numpy as np
import torch

from fedmef_dist.errors import UserError
from fedmef_dist.sparsity.mask import Mask
from fedmef_dist.sparsity.selection import largest, row_largest
from fedmef_dist.sparsity.space import ParameterSpace, Slice

Allocation = Literal["erk", "er", "uniform"]


def _share(shape: Sequence[int], allocation: Allocation) -> float:
    """A layer's share of the active weights before any bound: its size times its raw density."""
    if allocation == "uniform":
        return prod(shape)
    if allocation == "er":
        return (shape[0] + shape[1]) * prod(shape[2:])
    return sum(shape)


def allocate(shapes: Sequence[Sequence[int]], target: int, allocation: Allocation, floors: Sequence[int]) -> list[int]:
    """Active weights of each layer; they add up to ``target`` exactly.

    ``erk`` is the Erdos-Renyi-kernel rule (Evci et al. 2020, arXiv 1911.11134): density proportional to
    ``sum(shape) / prod(shape)``; ``er`` ignores the kernel's extent; ``uniform`` gives one density to all. A layer
    whose density would pass 1 is dense, one that would fall below its floor gets the floor, and the others are solved
    again. Fractions are settled by largest remainder, ties by layer order.

    Args:
        shapes: the layers' weight shapes.
        target: active weights in all, between sum(floors) and the number of weights.
        allocation: the rule.
        floors: the smallest count allowed for each layer.
    """
    shares = np.array([_share(shape, allocation) for shape in shapes], dtype=np.float64)
    low = np.array(floors, dtype=np.float64)
    high = np.array([prod(shape) for shape in shapes], dtype=np.float64)
    small, large = 0.0, float((high / shares).max())
    for _ in range(200):
        middle = (small + large) / 2
        if np.clip(middle * shares, low, high).sum() < target:
            small = middle
        else:
            large = middle
    wanted = np.clip(large * shares, low, high)
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    order = np.argsort(-(wanted - counts), kind="stable")
    while (missing := target - int(counts.sum())) != 0:
        step = 1 if missing > 0 else -1
        bound = high if missing > 0 else low
        movable = [layer for layer in order[::step] if counts[layer] != bound[layer]]
        counts[movable[: abs(missing)]] += step
    return counts.tolist()


def layer_counts(space: ParameterSpace, density: float, allocation: Allocation) -> list[int]:
    """Active weights of each prunable layer, for a density over ALL parameters.

    Raises:
        UserError: the parameters that are never pruned already fill the wanted density.
    """
    floors = [layer.rows * layer.filter_floor for layer in space.layers]
    target = round(density * space.n_parameters) - space.n_dense
    least = max(sum(floors), len(space.layers))
    if target < least:
        # Rounded up: what the message names can be reached.
        smallest = ceil(1e4 * (least + space.n_dense) / space.n_parameters) / 1e4
        raise UserError(
            f"density {density:g} cannot be reached: {space.n_dense:,} of {space.n_parameters:,} parameters are never "
            "pruned\n"
            "where: method.density\n"
            f"mend: choose at least {smallest:.4f}, or a model with fewer dense parameters"
        )
    return allocate([layer.shape for layer in space.layers], min(target, space.n_prunable), allocation, floors)


def keep_largest(layer: Slice, scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` positions (int64, within the layer) of largest score, no filter falling below its floor."""
    if layer.filter_floor:
        scores = scores.clone()
        scores[row_largest(scores.view(layer.rows, -1), layer.filter_floor)] = torch.inf
    return largest(scores, count)


def random_mask(space: ParameterSpace, counts: Sequence[int], generator: np.random.Generator) -> Mask:
    """A random mask with exactly ``counts`` active weights in the layers."""
    active = torch.zeros(space.n_prunable, dtype=torch.bool)
    for layer, count in zip(space.layers, counts, strict=True):
        scores = torch.from_numpy(generator.random(layer.size))
        active[layer.start + keep_largest(layer, scores, count)] = True
    return Mask(active.to(space.values.device))
