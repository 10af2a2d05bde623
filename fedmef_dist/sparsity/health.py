"""Whether adjustments of a mask do it good: do grown weights stay, where do they go, which filters run dry."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.sparsity.filter_swaps import FEWEST
from fedmef_dist.sparsity.mask import Mask
from fedmef_dist.sparsity.space import ParameterSpace, Slice


def grown_survived(grown: Mask, later: Mask) -> float | None:
    """The share of what had ``grown`` in one adjustment that is active in ``later``, after the next one.

    None where nothing had grown.
    """
    return grown.within(later).count / grown.count if grown.count else None


def growth_concentration(space: ParameterSpace, grown: Mask) -> float | None:
    """The share of a layer's growth that falls in the one filter that grows most.

    The mean over the layers, each weighted by how much it grows: a layer that grows a single weight would otherwise
    always have a share of 1. None where nothing grows.

    Args:
        space: the parameter space.
        grown: what joined the mask.
    """
    if not grown.count:
        return None
    return sum(int(_in_filters(layer, grown).max()) for layer in space.layers) / grown.count


def thin_filters(space: ParameterSpace, mask: Mask) -> int:
    """How many filters of all prunable layers have fewer than two active weights.

    Filters of a single weight, which cannot have two, are left out.
    """
    layers = [layer for layer in space.layers if layer.size // layer.rows >= FEWEST]
    return sum(int(np.count_nonzero(_in_filters(layer, mask) < FEWEST)) for layer in layers)


def _in_filters(layer: Slice, mask: Mask) -> np.ndarray:
    """Active weights of each of a layer's filters, (rows,); counted on the host, where masks are known."""
    return np.count_nonzero(mask.on_host[layer.start : layer.stop].reshape(layer.rows, -1), axis=1)


class MaskHealth:
    """What a run's metrics say of the adjustments of its mask, whatever its method; remembers what grew last.

    Args:
        space: the parameter space.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self._space = space
        self._grown = Mask(torch.zeros_like(space.mask.active))

    def adjusted(self, before: Mask, after: Mask) -> dict[str, float]:
        """The metrics of one adjustment; those are left out for which nothing has grown."""
        grown = after.without(before)
        found = {
            "sparsity/grown_survived": grown_survived(self._grown, after),
            "sparsity/growth_concentration": growth_concentration(self._space, grown),
            "sparsity/thin_filters": float(thin_filters(self._space, after)),
        }
        self._grown = grown
        return {key: value for key, value in found.items() if value is not None}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs: a bit for each prunable weight, uint8 (ceil(n_prunable / 8),) on the CPU."""
        return {"grown": self._grown.to_bits()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave. Raises ValueError where it is of another space."""
        bits, size = state["grown"], self._space.n_prunable
        if bits.dtype != torch.uint8 or bits.shape != self._grown.to_bits().shape:
            raise ValueError(f"{tuple(bits.shape)} numbers of {bits.dtype} are no bits of {size} weights")
        self._grown = Mask.from_bits(bits, size, 0, self._space.mask.active.device)
