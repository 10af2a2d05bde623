"""Picking positions by score.

Ties go to the lower position, or to those that a keyed generator draws: either way every rank and every rerun agrees.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.transfer import brought


def largest(scores: Tensor, count: int, generator: np.random.Generator | None = None) -> Tensor:
    """Positions of the ``count`` largest scores, int64 (count,), sorted by position.

    Args:
        scores: floating (n,). NaN counts as infinite: whoever has it still names as many as are expected of it.
        count: between 0 and n.
        generator: draws which of equal scores are taken; None: the first ones.
    """
    return largest_of_each([scores], [count], generator)[0]


def largest_of_each(
    parts: Sequence[Tensor], counts: Sequence[int], generator: np.random.Generator | None = None
) -> list[Tensor]:
    """:func:`largest` of one part after the other; the host waits at most once for a device that has them all."""
    if any(scores.device.type != "cpu" for scores in parts):
        return _largest_on_device([_finite(scores) for scores in parts], counts, generator)
    # One after the other, so that a single part is copied at a time.
    return [_largest(_finite(scores), count, generator) for scores, count in zip(parts, counts, strict=True)]


def _finite(scores: Tensor) -> Tensor:
    """A copy with infinity in the place of NaN."""
    return scores.nan_to_num(torch.inf, torch.inf, -torch.inf)


def _largest(scores: Tensor, count: int, generator: np.random.Generator | None) -> Tensor:
    if count <= 0:
        return torch.empty(0, dtype=torch.int64)
    threshold = scores.topk(count, sorted=False).values.min()
    above = (scores > threshold).nonzero().flatten()
    tied = (scores == threshold).nonzero().flatten()
    missing = count - above.numel()
    if generator is not None and missing < tied.numel():
        tied = tied[torch.from_numpy(generator.permutation(tied.numel()))]
    return torch.cat([above, tied[:missing]]).sort().values


def _largest_on_device(
    parts: Sequence[Tensor], counts: Sequence[int], generator: np.random.Generator | None
) -> list[Tensor]:
    """The same by sorts, for which the host waits only where lots are drawn: it must know among how many."""
    orders = [scores.argsort(descending=True, stable=True) for scores in parts]
    if generator is not None:
        for which, (above, tied) in enumerate(_ties(parts, orders, counts)):
            if 0 < counts[which] < above + tied:
                lots = brought(torch.from_numpy(generator.permutation(tied)), parts[which].device)
                order = orders[which]
                orders[which] = torch.cat([order[:above], order[above : above + tied][lots]])
    return [order[:count].sort().values for order, count in zip(orders, counts, strict=True)]


def _ties(parts: Sequence[Tensor], orders: Sequence[Tensor], counts: Sequence[int]) -> list[list[int]]:
    """How many scores of each part are above its last one that is taken, and how many are equal to it."""
    found = []
    for scores, order, count in zip(parts, orders, counts, strict=True):
        last = max(count, 1)
        threshold = scores[order[last - 1 : last]]  # of one element: to index by a number would wait for it
        found.append(torch.stack([(scores > threshold).sum(), (scores == threshold).sum()]))
    return torch.stack(found).tolist()


def smallest(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` smallest scores, int64 (count,), sorted by position."""
    return largest(-scores, count)


def row_largest(scores: Tensor, count: int) -> Tensor:
    """Flat positions of the ``count`` largest scores of every row, int64 (rows * count,).

    Args:
        scores: floating (rows, columns).
        count: between 1 and the number of columns.
    """
    columns = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    rows = torch.arange(scores.shape[0], device=scores.device).unsqueeze(1)
    return (rows * scores.shape[1] + columns).flatten()


def row_ranks(scores: Tensor, generator: np.random.Generator | None = None) -> Tensor:
    """The place of every score among those of its row, int64 like ``scores``: 0 for the largest.

    Args:
        scores: floating (rows, columns). NaN counts as infinite, as in :func:`largest`.
        generator: draws in which order equal scores come; None: by position.
    """
    scores = scores.nan_to_num(torch.inf, torch.inf, -torch.inf)
    if generator is None:
        order = scores.argsort(dim=1, descending=True, stable=True)
    else:
        shuffled = torch.from_numpy(generator.random(scores.shape)).argsort(dim=1).to(scores.device)
        order = shuffled.gather(1, scores.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
