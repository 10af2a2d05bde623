"""Scaled weight standardisation of the filters of a weight (FedMef, section 3.3).

Brock et al. 2021 (arXiv 2101.08692), over the active weights A_i of each filter:
w_ij = gamma g_i (theta_ij - mu_i) / sqrt(max(N_i var_i, eps)) on A_i, 0 elsewhere. The outputs are centred at 0 without
a batch, so small activations are the unimportant ones. A filter with fewer than two active weights has no variance and
uses g_i theta_ij.

Weights outside the mask have to be exactly 0; the sums over A_i rely on it.

Float32 weights go through compiled loops on the CPU, which add up in the order of torch's operations: the same bits in
a fraction of the time. On a GPU one kernel each way stands for all operations.
"""

from math import pi, prod, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedmef_dist.layers import bits
from fedmef_dist.layers.kernels import has_loops, has_triton
from fedmef_dist.layers.operations import LARGE

GAMMA_RELU = sqrt(2 / (1 - 1 / pi))
EPSILON = 1e-4


class Normaliser(NamedTuple):
    """Constants of the normalisation."""

    gamma: float = GAMMA_RELU
    centre: bool = True


STANDARD = Normaliser()


def _rows(weight: Tensor, channels_last: bool) -> Tensor:
    """(O, n): a filter a row; a view where the weight has this memory order."""
    return bits.flatten(weight, channels_last).view(weight.shape[0], -1)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Dot product of every two rows, (O, 1), without a tensor of products; in their own type under autocast too."""
    kind = left.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return _dot(left, right)
    return torch.bmm(left.unsqueeze(1), right.unsqueeze(2)).view(-1, 1)


class Filters(NamedTuple):
    """What the normalisation sees of a weight, in its memory order: a filter a row.

    Attributes:
        deviation: (O, n), from the filter's mean; 0 where inactive.
        inverse_count: (O, 1), 1 / N_i where the mean is subtracted, else 0.
        scale: (O, 1), the factor beside g_i and the deviation.
        squares: (O, 1), N_i var_i, but infinite where the scale does not depend on theta: where eps acts, or N_i < 2.
        shape: of the weight.
        channels_last: memory order of the weight.
    """

    deviation: Tensor
    inverse_count: Tensor
    scale: Tensor
    squares: Tensor
    shape: torch.Size
    channels_last: bool

    def weight(self, gain: Tensor) -> Tensor:
        """The weight that acts, with the gain (O,); in the place of the deviation, unless autograd needs that."""
        factor = self.scale * gain.unsqueeze(1)
        rows = self.deviation * factor if self.deviation.requires_grad else self.deviation.mul_(factor)
        return self.like(rows)

    def like(self, rows: Tensor) -> Tensor:
        """Rows (O, n) in the form of the weight."""
        return bits.like(rows.view(-1), self.shape, self.channels_last)


def filters_of(theta: Tensor, mask: Tensor | None, normaliser: Normaliser, count: Tensor | None = None) -> Filters:
    """Arguments: see :func:`normalise`."""
    order = bits.is_channels_last(theta)
    count = active_counts(theta, mask) if count is None else count
    full = count > 1
    inverse = _inverse(count, full, normaliser)
    rows = _rows(theta, order)
    deviation = rows - rows.sum(1, keepdim=True) * inverse
    if mask is not None:
        # Some filters after the others: torch makes a float copy of what it multiplies with.
        active, some = _rows(mask, order), max(LARGE // deviation.shape[1], 1)
        for start in range(0, len(deviation), some):
            deviation[start : start + some] *= active[start : start + some]
    scale, squares = _scaled(_dot(deviation, deviation), full, normaliser)
    return Filters(deviation, inverse, scale, squares, theta.shape, order)


def _inverse(count: Tensor, full: Tensor, normaliser: Normaliser) -> Tensor:
    """(O, 1): 1 / N_i where the mean is subtracted, else 0; ``full``, bool, where N_i > 1."""
    return torch.where(full, 1 / count.clamp(min=1), 0.0) if normaliser.centre else torch.zeros_like(count)


def _scaled(squares: Tensor, full: Tensor, normaliser: Normaliser) -> tuple[Tensor, Tensor]:
    """Scale and squares as they stand in :class:`Filters`, from the squared deviations' sums; all (O, 1)."""
    scale = torch.where(full, normaliser.gamma * squares.clamp(min=EPSILON).rsqrt(), 1.0)
    return scale, torch.where(full & (squares > EPSILON), squares, torch.inf)


def active_counts(weight: Tensor, mask: Tensor | None) -> Tensor:
    """How many weights of every filter are active, (O, 1), in the type of the weight."""
    if mask is None:
        return weight.new_full((weight.shape[0], 1), prod(weight.shape[1:]))
    return mask.sum(tuple(range(1, mask.dim()))).unsqueeze(1).to(weight.dtype)


def filter_means(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Mean mu_i of every filter's active weights, (O,); 0 for filters with fewer than two, which are not centred.

    Args:
        weight: (O, ...), 0 where inactive.
        mask: bool, like the weight; None: all are active.
    """
    count = active_counts(weight, mask).flatten()
    return torch.where(count > 1, weight.flatten(1).sum(1) / count.clamp(min=1), 0.0)


def normalise(
    theta: Tensor, gain: Tensor, mask: Tensor | None, normaliser: Normaliser, count: Tensor | None = None
) -> Tensor:
    """The weight that acts, like theta.

    Args:
        theta: raw weight (O, ...), 0 where inactive.
        gain: (O,).
        mask: bool, like theta, set where active; None: all are.
        normaliser: constants.
        count: active weights of every filter, (O, 1), of theta's type; None: counted here.
    """
    return normalisation(theta, gain, mask, normaliser, count).weight()


def normalise_backward(grad: Tensor, gain: Tensor, mask: Tensor | None, filters: Filters) -> tuple[Tensor, Tensor]:
    """Gradients of theta and gain from that of the normalised weight.

    Inactive positions get what they would as active weights without effect (deviation 0): the server grows by it, and
    the optimiser masks it.

    Args:
        grad: like theta; overwritten, since a large weight's temporaries would be the peak of a step.
        gain: (O,).
        mask: bool, like theta; None: all are active.
        filters: of theta.
    """
    rows = _rows(grad, filters.channels_last)
    along = _dot(rows, filters.deviation)
    active = torch.ones_like(rows) if mask is None else _rows(mask, filters.channels_last).to(rows.dtype)
    total = _dot(rows, active)
    del active
    # The deviations sum to 0 over a centred filter, so their part of the gradient has no mean to subtract.
    rows.sub_(total * filters.inverse_count).addcmul_(filters.deviation, along / filters.squares, value=-1)
    rows.mul_(filters.scale * gain.unsqueeze(1))
    return filters.like(rows), (along * filters.scale).view_as(gain)


class _InOperations(NamedTuple):
    """A weight's normalisation in torch's operations; ``active`` is the count, see :func:`normalise`."""

    theta: Tensor
    gain: Tensor
    mask: Tensor | None
    normaliser: Normaliser
    active: Tensor | None

    def weight(self) -> Tensor:
        """The weight that acts."""
        return filters_of(self.theta, self.mask, self.normaliser, self.active).weight(self.gain)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`normalise_backward`."""
        filters = filters_of(self.theta, self.mask, self.normaliser, self.active)
        return normalise_backward(grad, self.gain, self.mask, filters)

    def part(self, some: slice) -> "_InOperations":
        """That of some of the filters."""
        mask = None if self.mask is None else self.mask[some]
        active = None if self.active is None else self.active[some]
        return _InOperations(self.theta[some], self.gain[some], mask, self.normaliser, active)


class _InLoops(NamedTuple):
    """The same in compiled loops, which find a filter's deviations anew in each pass: nothing like the weight is kept.

    Attributes:
        theta: float32 (O, n), a filter a row.
        mask: bool (O, n); None: all are active.
        mean: (O, 1), what is subtracted.
        inverse_count: see :class:`Filters`, as for all that follow.
        scale: (O, 1).
        squares: (O, 1).
        gain: (O,).
    """

    theta: Tensor
    mask: Tensor | None
    mean: Tensor
    inverse_count: Tensor
    scale: Tensor
    squares: Tensor
    gain: Tensor

    @classmethod
    def of(cls, rows: Tensor, gain: Tensor, mask: Tensor | None, normaliser: Normaliser, count: Tensor) -> "_InLoops":
        """Of a weight's rows (O, n), their mask, and the number of each filter's active weights, (O, 1)."""
        from fedmef_dist.layers.kernels.cpu_filters import measure  # needs numba

        found = measure(rows, mask, count, normaliser.gamma, EPSILON, centre=normaliser.centre)
        return cls(rows, mask, *found, gain)

    def weight(self) -> Tensor:
        """The weight that acts, (O, n)."""
        from fedmef_dist.layers.kernels.cpu_filters import weigh

        return weigh(self.theta, self.mask, self.mean, self.scale * self.gain.unsqueeze(1))

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`normalise_backward`; the gradients are (O, n)."""
        from fedmef_dist.layers.kernels.cpu_filters import shift, sum_products

        along, total = sum_products(grad, self.theta, self.mask, self.mean)
        factor = self.scale * self.gain.unsqueeze(1)
        shift(grad, self.theta, self.mask, self.mean, total * self.inverse_count, along / self.squares, factor)
        return grad, (along * self.scale).view_as(self.gain)

    def part(self, some: slice) -> "_InLoops":
        """That of some of the filters."""
        numbers = (self.mean, self.inverse_count, self.scale, self.squares, self.gain)
        mask = None if self.mask is None else self.mask[some]
        return _InLoops(self.theta[some], mask, *(number[some] for number in numbers))


class _InKernels(NamedTuple):
    """A weight's normalisation by its rows; gives them the form of the weight."""

    rows: Any
    shape: torch.Size
    channels_last: bool

    def weight(self) -> Tensor:
        """The weight that acts."""
        return bits.like(self.rows.weight().view(-1), self.shape, self.channels_last)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`normalise_backward`."""
        grad_theta, grad_gain = self.rows.gradients(_rows(grad, self.channels_last).contiguous())
        return bits.like(grad_theta.view(-1), self.shape, self.channels_last), grad_gain

    def part(self, some: slice) -> "_InKernels":
        """That of some of the filters."""
        rows = self.rows.part(some)
        return _InKernels(rows, torch.Size((len(rows.theta), *self.shape[1:])), self.channels_last)


Normalisation = _InOperations | _InKernels


def normalisation(
    theta: Tensor, gain: Tensor, mask: Tensor | None, normaliser: Normaliser, count: Tensor | None
) -> Normalisation:
    """A weight's normalisation, by what is fastest where it lies. Arguments: see :func:`normalise`."""
    differentiable = torch.is_grad_enabled() and (theta.requires_grad or gain.requires_grad)
    loops = has_loops(theta) and len(theta) > 1  # a single filter's sums torch makes in another order
    if differentiable or theta.dtype != torch.float32 or not (loops or has_triton(theta)):
        return _InOperations(theta, gain, mask, normaliser, count)
    order = bits.is_channels_last(theta)
    rows, active = _rows(theta, order), None if mask is None else _rows(mask, order)
    if loops:
        count = active_counts(theta, mask) if count is None else count
        return _InKernels(_InLoops.of(rows, gain, active, normaliser, count), theta.shape, order)
    from fedmef_dist.layers.kernels.gpu_filters import FilterRows  # needs Triton

    fused = FilterRows(rows, active, gain, normaliser.gamma, EPSILON, normaliser.centre)
    return _InKernels(fused, theta.shape, order)
