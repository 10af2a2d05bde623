"""Scores by which inactive weights grow, and the order of those whose scores are equal."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.sparsity.space import ParameterSpace

_TINY = 1e-12
_SERVER = -1


@dataclass(frozen=True)
class GrowthOrder:
    """In which order weights of equal score grow: drawn for each round, and in it for the server and for each client.

    Where fewer weights have a gradient than must grow (dead inputs, padding that is always 0), the others all score 0;
    by position they would be those of the layer's first filters, in every round.
    """

    seed: int = 0
    round: int = 0

    def of(self, client: int = _SERVER) -> np.random.Generator:
        """The generator of a client, or of the server."""
        return numpy_generator(self.seed, "growth order", self.round, client)


def channel_normalised(space: ParameterSpace, gradient: Tensor) -> Tensor:
    """A growth score: magnitudes over their root mean square along each input channel.

    The mean is over all weights of the layer, active or not, that read the same input channel; else one bright channel
    takes all growth. A channel without any gradient scores 0.

    Args:
        space: the parameter space.
        gradient: floating (n_prunable,) or longer; what is behind the prunable part is left out.
    """
    scores = gradient[: space.n_prunable].abs()
    for layer in space.layers:
        # Groups, filters of a group, channels that they read, kernel.
        weights = layer.view(scores).unflatten(0, (layer.groups, -1))
        readers = [1, *range(3, weights.dim())]
        weights /= weights.square().mean(readers, keepdim=True).sqrt().clamp(min=_TINY)
    return scores
