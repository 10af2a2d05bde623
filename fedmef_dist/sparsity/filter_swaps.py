"""Swaps within filters: each grows as many weights as it loses, so its number of active weights stays as it began.

Growth over a whole layer piles onto few filters and empties others; a filter with fewer than two active weights has no
variance, and a layer that normalises its filters cannot use it. What is said of every filter is a tensor with one entry
a filter, those of all layers one after another.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.sparsity.selection import row_ranks, smallest
from fedmef_dist.sparsity.space import ParameterSpace
from fedmef_dist.sparsity.swaps import drawn

FEWEST = 2


def count_in_filters(space: ParameterSpace, positions: Tensor) -> Tensor:
    """How many of the positions (int64, each once) lie in each filter, int64 (filters,)."""
    chosen = torch.zeros_like(space.mask.active)
    chosen[positions] = True
    return _count(space, chosen)


def swappable_in_filters(space: ParameterSpace) -> Tensor:
    """How many weights each filter can lose and grow again, int64 (filters,).

    As many as leave it :data:`FEWEST` active ones, and no more than it has inactive.
    """
    active = _count(space, space.mask.active)
    return torch.minimum(active - FEWEST, _count(space, ~space.mask.active)).clamp(min=0)


def filters_can_swap(space: ParameterSpace, counts: Sequence[int]) -> bool:
    """Whether any filter could swap a weight, were each layer's ``counts`` spread evenly over its filters.

    Where not, each filter has :data:`FEWEST` active weights or fewer, or all that it has room for.
    """
    return any(
        FEWEST < share < layer.size // layer.rows
        for layer, count in zip(space.layers, counts, strict=True)
        for share in (count // layer.rows, -(-count // layer.rows))
    )


def filter_swap_counts(space: ParameterSpace, share: float) -> list[int]:
    """xi_l: floor(share * a_l) of every layer with a_l active weights, no more than its filters can swap together."""
    filters = _by_layer(space, swappable_in_filters(space))
    able = torch.stack([of_layer.sum() for of_layer in filters]).tolist()  # a GPU is waited for once
    return [min(int(share * count), most) for count, most in zip(space.layer_counts(), able, strict=True)]


def weakest_swappable(space: ParameterSpace, magnitude: Tensor, counts: Sequence[int]) -> Tensor:
    """Positions (int64) of the ``counts`` active weights of smallest magnitude in each layer that filters can swap.

    Of each filter no more than :func:`swappable_in_filters` allows, its weakest ones.

    Args:
        space: the parameter space with its current mask.
        magnitude: float32 (n_prunable,), at least 0.
        counts: how many of each layer, as of :func:`filter_swap_counts`.
    """
    finite = magnitude.clamp(max=torch.finfo(magnitude.dtype).max)
    weakest = -finite.masked_fill(~space.mask.active, torch.inf)
    # Whatever may go comes before what must stay.
    candidates = finite.masked_fill(~_best_in_filters(space, weakest, swappable_in_filters(space)), torch.inf)
    return torch.cat(
        [
            layer.start + smallest(candidates[layer.start : layer.stop], count)
            for layer, count in zip(space.layers, counts, strict=True)
        ]
    )


def strongest_inactive_in_filters(
    space: ParameterSpace, scores: Tensor, counts: Tensor, total: int, generator: np.random.Generator | None = None
) -> Tensor:
    """Positions (int64) of the ``counts`` inactive weights of largest score in each filter.

    Args:
        space: the parameter space with its current mask.
        scores: floating (n_prunable,), at least 0.
        counts: int64 (filters,); those of the weights that leave keep every filter's number.
        total: their sum, which a device would be asked for. It is trusted there, and so are the counts.
        generator: draws which of equal scores grow; None: the first ones.

    Raises:
        ValueError: on the CPU: a filter has fewer inactive weights.
    """
    if counts.device.type == "cpu":  # a device would be waited for
        _check(counts, _count(space, ~space.mask.active))
    chosen = _best_in_filters(space, scores.masked_fill(space.mask.active, -1), counts, generator)
    return _positions(chosen, total)


def random_inactive_in_filters(
    space: ParameterSpace, counts: Tensor, total: int, generator: np.random.Generator
) -> Tensor:
    """Positions (int64) of inactive weights, drawn. Arguments, errors: :func:`strongest_inactive_in_filters`."""
    return strongest_inactive_in_filters(space, drawn(space, generator), counts, total)


def _best_in_filters(
    space: ParameterSpace, scores: Tensor, counts: Tensor, generator: np.random.Generator | None = None
) -> Tensor:
    """Which are the ``counts`` of largest score in each filter, bool (n_prunable,)."""
    chosen = torch.zeros_like(space.mask.active)
    for layer, wanted in zip(space.layers, _by_layer(space, counts), strict=True):
        ranks = row_ranks(scores[layer.start : layer.stop].view(layer.rows, -1), generator)
        chosen[layer.start : layer.stop] = (ranks < wanted.unsqueeze(1)).flatten()
    return chosen


def _positions(chosen: Tensor, total: int) -> Tensor:
    """Where ``chosen``, bool (n,), is set, ``total`` times: int64 (total,), in a shape that a device need not tell."""
    return chosen.nonzero().flatten() if chosen.device.type == "cpu" else _scattered(chosen, total)


def _scattered(chosen: Tensor, total: int) -> Tensor:
    places = torch.where(chosen, chosen.cumsum(0) - 1, total)  # all others to one place behind, which is cut off
    every = torch.arange(len(chosen), device=chosen.device)
    return every.new_zeros(total + 1).scatter_(0, places.clamp(max=total), every)[:total]


def _count(space: ParameterSpace, chosen: Tensor) -> Tensor:
    rows = [chosen[layer.start : layer.stop].view(layer.rows, -1).sum(1) for layer in space.layers]
    return torch.cat(rows)


def _by_layer(space: ParameterSpace, filters: Tensor) -> Sequence[Tensor]:
    return filters.split([layer.rows for layer in space.layers])


def _check(counts: Tensor, available: Tensor) -> None:
    short = (counts > available).nonzero().flatten().tolist()
    if short:
        filter_ = short[0]
        raise ValueError(f"filter {filter_} has {available[filter_]} inactive weights, fewer than {counts[filter_]}")
