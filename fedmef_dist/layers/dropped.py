"""How much of the activations pruning drops: measured on one forward pass, outside of training."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedmef_dist.layers.activation_pruning import Saved, observing


class Dropped(NamedTuple):
    """What is missing in the kept inputs of all layers that pack or prune theirs.

    Attributes:
        mass: share of the sum of squares, 0 to 1.
        nonzeros: share of the entries that are not 0, 0 to 1.
    """

    mass: float
    nonzeros: float


def measure_dropped(forward: Callable[[], object]) -> Dropped:
    """Runs ``forward``, a pass with gradients enabled in which nothing is recomputed, and adds up what was dropped.

    Takes one forward pass and two sums for each layer; the sums wait on the device until the end. Where nothing is
    pruned both shares are 0. What is stored in 16 bits is rounded; that counts as dropped as far as squares show it.
    """
    sums: list[Tensor] = []

    def note(x: Tensor, saved: Saved) -> None:
        tensors, kept = saved
        values = tensors[-1] if kept.counts else x
        mass, count = _square_sum(x), x.count_nonzero().double()
        sums.append(torch.stack([mass, _square_sum(values), count, values.count_nonzero().double()]))

    with observing(note):
        forward()
    if not sums:
        return Dropped(0.0, 0.0)
    whole, kept, nonzeros, kept_nonzeros = torch.stack(sums).sum(0).tolist()
    return Dropped(_missing(whole, kept), _missing(nonzeros, kept_nonzeros))


def _missing(whole: float, kept: float) -> float:
    return max(1 - kept / whole, 0.0) if whole else 0.0


def _square_sum(values: Tensor) -> Tensor:
    """Float64, 0-dim; in double precision, so that the order of addition shows in no digit that is told."""
    return values.detach().double().square().sum()
