"""How many weights each layer may keep, and a first random choice of them."""

from collections.abc import Sequence
from math import ceil, inf, prod
from typing import Literal

import numpy as np
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.sparsity.selection import largest, row_largest, row_ranks
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
    return share_out([_share(shape, allocation) for shape in shapes], target, floors, [prod(shape) for shape in shapes])


def share_out(wanted: Sequence[float], target: int, smallest: Sequence[int], largest: Sequence[int]) -> list[int]:
    """Counts in proportion to ``wanted``, as far as their bounds allow, that add up to ``target`` exactly.

    Fractions are settled by largest remainder, ties by order.

    Args:
        wanted: positive and finite.
        target: between the sums of the bounds.
        smallest: the smallest counts allowed.
        largest: the largest counts allowed.
    """
    assert all(0 < share < inf for share in wanted)
    assert sum(smallest) <= target <= sum(largest)
    shares, low, high = (np.array(numbers, dtype=np.float64) for numbers in (wanted, smallest, largest))
    below, above = 0.0, float((high / shares).max())
    for _ in range(200):
        middle = (below + above) / 2
        if np.clip(middle * shares, low, high).sum() < target:
            below = middle
        else:
            above = middle
    fractions = np.clip(above * shares, low, high)
    counts = np.floor(fractions + 1e-9).astype(np.int64)
    # The remainders add up to what is missing, so more layers than that have one, and room for one more.
    order = np.argsort(-(fractions - counts), kind="stable")
    counts[order[: target - int(counts.sum())]] += 1
    return counts.tolist()


def layer_counts(space: ParameterSpace, density: float, allocation: Allocation) -> list[int]:
    """Active weights of each prunable layer, for a density over ALL parameters; no layer gets less than its floor.

    Raises:
        UserError: no parameter can be pruned, or those that never are already fill the wanted density.
    """
    floors = [layer.floor for layer in space.layers]
    target, least = round(density * space.n_parameters) - space.n_dense, max(1, sum(floors))
    if target < least:
        if not space.layers:
            raise UserError(
                "the model has no layer whose weights can be pruned",
                where="model.name",
                mend="take a model with a convolution or a linear layer before the output layer, or method.name=fedavg",
            )
        # Rounded up: what the message names can be reached.
        smallest = ceil(1e4 * (least + space.n_dense) / space.n_parameters) / 1e4
        raise UserError(
            f"density {density:g} cannot be reached: {space.n_dense:,} of {space.n_parameters:,} parameters are never "
            "pruned",
            where="method.density",
            mend=f"choose at least {smallest:.4f}, or a model with fewer dense parameters",
        )
    return allocate([layer.shape for layer in space.layers], min(target, space.n_prunable), allocation, floors)


def keep_largest(layer: Slice, scores: torch.Tensor, count: int) -> torch.Tensor:
    """The ``count`` positions (int64, within the layer) of largest score, no filter falling below its floor."""
    if layer.filter_floor:
        scores = scores.clone()
        scores[row_largest(scores.view(layer.rows, -1), layer.filter_floor)] = torch.inf
    return largest(scores, count)


def keep_largest_of_all(space: ParameterSpace, scores: torch.Tensor, total: int) -> torch.Tensor:
    """Ranks the weights of all layers together and keeps the ``total`` of largest score, bool (n_prunable,).

    No filter falls below its floor and no layer loses its last weight: the best of each filter, and of each layer, are
    kept first. Where the total does not even suffice for one weight a layer, the floors come first.

    Args:
        space: the parameter space.
        scores: floating (n_prunable,), finite.
        total: at least the sum of the filters' floors.
    """
    scores = scores.clone()
    for layer in space.layers:
        own = scores[layer.start : layer.stop]
        if layer.filter_floor:
            own[row_largest(own.view(layer.rows, -1), layer.filter_floor)] = torch.inf
        else:
            own[largest(own, 1)] = torch.finfo(scores.dtype).max
    active = torch.zeros_like(scores, dtype=torch.bool)
    active[largest(scores, total)] = True
    return active


def magnitude_mask(space: ParameterSpace, values: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """The weights of largest magnitude, exactly ``counts`` of them in the layers, bool (n_prunable,).

    Args:
        space: the parameter space.
        values: float32 (total,).
        counts: active weights of each layer.
    """
    active = torch.zeros(space.n_prunable, dtype=torch.bool, device=values.device)
    for layer, count in zip(space.layers, counts, strict=True):
        active[layer.start + keep_largest(layer, values[layer.start : layer.stop].abs(), count)] = True
    return active


def random_mask(space: ParameterSpace, counts: Sequence[int], generator: np.random.Generator) -> torch.Tensor:
    """Random weights, exactly ``counts`` of them in the layers, bool (n_prunable,)."""
    active = torch.zeros(space.n_prunable, dtype=torch.bool)
    for layer, count in zip(space.layers, counts, strict=True):
        scores = torch.from_numpy(generator.random(layer.size))
        active[layer.start + keep_largest(layer, scores, count)] = True
    return active.to(space.values.device)


def even_mask(space: ParameterSpace, counts: Sequence[int], generator: np.random.Generator) -> torch.Tensor:
    """Random weights, bool (n_prunable,), each layer's ``counts`` spread evenly over its filters.

    Two filters of a layer differ by one weight at most. Which filters get one more, and the positions within each, are
    drawn. A layer's count covers the floors of its filters, so an even share does too.
    """
    active = torch.zeros(space.n_prunable, dtype=torch.bool)
    for layer, count in zip(space.layers, counts, strict=True):
        share, extra = divmod(count, layer.rows)
        shares = torch.full((layer.rows,), share)
        shares[largest(torch.from_numpy(generator.random(layer.rows)), extra)] += 1
        scores = torch.from_numpy(generator.random((layer.rows, layer.size // layer.rows)))
        active[layer.start : layer.stop] = (row_ranks(scores) < shares.unsqueeze(1)).flatten()
    return active.to(space.values.device)
