"""Budget-aware extrusion: empty the marked weights while the network still trains (FedMef, section 3.2)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.layers.filters import filter_means
from fedmef_dist.methods.swapping import TopGradients
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.growth import GrowthOrder

ExtrusionTarget = Literal["zero", "mean"]


class Deviation:
    """Distance of weights from what removes them: from 0, or from their filter's mean.

    A layer that centres its filters (NSConv) multiplies with theta - mu, so there a weight is without effect at mu, not
    at 0. For other layers, and for filters with fewer than two active weights, which no layer centres, the centre is 0.

    Args:
        space: the parameter space.
        target: ``zero`` measures from 0 everywhere, the published form; ``mean`` from mu where a layer centres.
        mask: what is active; None: the space's current mask.
    """

    def __init__(self, space: ParameterSpace, target: ExtrusionTarget, mask: Mask | None = None) -> None:
        self._space, self._target, self._mask = space, target, mask or space.mask
        self._layers = [layer for layer in space.layers if layer.centred] if target == "mean" else []
        active = self._mask.active
        self._counts = {
            layer.name: active[layer.start : layer.stop].view(layer.rows, -1).sum(1, keepdim=True)
            for layer in self._layers
        }
        self._active = active

    def under(self, mask: Mask) -> "Deviation":
        """The same where another mask is active, whose filters have other means."""
        return self if mask is self._mask else Deviation(self._space, self._target, mask)

    def centres(self, values: Tensor) -> Tensor:
        """What each prunable weight is measured from, float32 (n_prunable,)."""
        centres = torch.zeros_like(values[: self._active.numel()])
        for layer in self._layers:
            rows = slice(layer.start, layer.stop)
            means = filter_means(values[rows].view(layer.rows, -1), self._active[rows].view(layer.rows, -1))
            centres[rows].view(layer.rows, -1).copy_(means.unsqueeze(1))
        return centres

    def of(self, values: Tensor) -> Tensor:
        """Theta minus its centre, float32 (n_prunable,); 0 at inactive positions."""
        return (values[: self._active.numel()] - self.centres(values)).mul_(self._active)

    def subtract_row_means(self, gradient: Tensor) -> None:
        """Carries a gradient (n_prunable,) with regard to the deviations back to the weights, through the means."""
        for layer in self._layers:
            count = self._counts[layer.name]
            rows = gradient[layer.start : layer.stop].view(layer.rows, -1)
            rows -= rows.sum(1, keepdim=True) / count.clamp(min=1) * (count > 1)


class Extrusion(TopGradients):
    """Adds lambda * sum over marked weights of deviation^2 to a client's loss and raises its learning rate with REX.

    The rate of step t of T is max(eta_t, beta_t), beta_t = (2T - 2t) / (2T - t) * (2 sigmoid(||deviation of the marked
    weights||) - 1) * eta_0; the first factor is the REX profile (Chen et al. 2021, arXiv 2107.04197).

    Args:
        space: the parameter space.
        counts: top gradients of inactive weights that a client sends, of each layer.
        batches: on how many batches it takes them.
        marked: int64, the positions to empty.
        deviation: how far a weight is from being without effect.
        strength: lambda.
        base_rate: eta_0.
        summed, filters, order: see :class:`TopGradients`.
    """

    penalises = True

    def __init__(
        self,
        space: ParameterSpace,
        counts: Sequence[int],
        batches: int,
        *,
        marked: Tensor,
        deviation: Deviation,
        strength: float,
        base_rate: float,
        summed: bool = False,
        filters: Tensor | None = None,
        order: GrowthOrder | None = None,
    ) -> None:
        super().__init__(space, counts, batches, summed=summed, filters=filters, order=order)
        self.marked = marked
        self.deviation = self._own_deviation = deviation
        self.strength = strength
        self.base_rate = base_rate

    def begin(self, client: LocalClient) -> None:
        """Where the client trains a part of the mask, the deviations are those of its filters."""
        super().begin(client)
        self._own_deviation = self.deviation.under(self.space.mask)

    def prepare_step(self, step: int, steps: int, rate: float) -> Tensor:
        """Adds the penalty's gradient; returns max(eta_t, beta_t), 0-dim, without a synchronisation."""
        super().prepare_step(step, steps, rate)
        space = self.space
        deviation = self._own_deviation
        marked = deviation.of(space.values)[self.marked]
        penalty = torch.zeros_like(space.values[: space.n_prunable])
        penalty[self.marked] = 2 * self.strength * marked
        deviation.subtract_row_means(penalty)
        space.gradient[: space.n_prunable] += penalty
        profile = (2 * steps - 2 * step) / (2 * steps - step)
        beta = profile * self.base_rate * (2 * torch.sigmoid(marked.norm()) - 1)
        return beta.clamp(min=rate)
