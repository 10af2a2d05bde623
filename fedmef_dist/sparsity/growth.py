"""Scores by which inactive weights grow."""

from torch import Tensor

from fedmef_dist.sparsity.space import ParameterSpace

_TINY = 1e-12


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
