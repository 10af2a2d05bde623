"""The magnitude with which a weight acts, whatever its layer makes of the raw one."""

from torch import Tensor

from fedmef_dist.layers.filters import Normaliser, normalise
from fedmef_dist.sparsity import ParameterSpace


def acting_magnitude(space: ParameterSpace, values: Tensor) -> Tensor:
    """|gamma g_i (theta_ij - mu_i) / s_i| in layers that normalise their filters, |theta| in others.

    Float32 (n_prunable,), 0 where inactive. What NSConv multiplies its input with, so that weights of thin and of full
    filters, which differ in s_i, are compared by what they do.

    Args:
        space: the parameter space with its current mask.
        values: a state, float32 (total,), 0 where inactive.
    """
    magnitude = values[: space.n_prunable].abs()
    for layer in space.layers:
        gain = space.gain_of(layer)
        if gain is not None and layer.gamma is not None:
            piece = slice(layer.start, layer.stop)
            theta, mask = (flat[piece].view(layer.rows, -1) for flat in (values, space.mask.active))
            normaliser = Normaliser(layer.gamma, layer.centred)
            acting = normalise(theta, values[gain.start : gain.stop], mask, normaliser)
            magnitude[piece] = acting.abs().flatten()
    return magnitude
