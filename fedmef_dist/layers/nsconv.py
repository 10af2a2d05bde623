"""Normalised sparse convolution and linear layer (FedMef, section 3.3).

Scaled weight standardisation (Brock et al. 2021, arXiv 2101.08692) over the active weights A_i of each filter:
w_ij = gamma g_i (theta_ij - mu_i) / sqrt(max(N_i var_i, eps)) on A_i, 0 elsewhere. The outputs are centred at 0 without
a batch, so small activations are the unimportant ones. A filter with fewer than two active weights has no variance and
uses g_i theta_ij. The normalised weight is not kept but computed again in the backward pass.

Weights outside the mask have to be exactly 0; the sums over A_i rely on it.
"""

from collections.abc import Callable, Iterable
from math import pi, prod, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedmef_dist.layers import bits
from fedmef_dist.layers.activation_pruning import DENSE, KeptInput, Pruning, keep
from fedmef_dist.layers.batchnorm import is_repeating
from fedmef_dist.layers.kernels import has_triton, on_host
from fedmef_dist.layers.operations import LARGE, Affine, Operation, backward, in_autocast_type, padded_convolution
from fedmef_dist.layers.powered import act

GAMMA_RELU = sqrt(2 / (1 - 1 / pi))
EPSILON = 1e-4
_ACTIVATIONS: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU6: F.relu6,
    nn.SiLU: F.silu,
    nn.Hardswish: F.hardswish,
    nn.GELU: F.gelu,
}


class Normaliser(NamedTuple):
    """Constants of the normalisation."""

    gamma: float = GAMMA_RELU
    centre: bool = True


def gamma_of(kinds: Iterable[type[nn.Module]]) -> float:
    """Gamma for a network with these kinds of layers: 1 / the deviation of its activation over a standard normal input.

    The first known activation decides; ReLU where there is none.
    """
    for kind in kinds:
        if kind is nn.ReLU:
            return GAMMA_RELU
        if kind in _ACTIVATIONS:
            z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
            weight = torch.exp(-0.5 * z * z)
            weight /= weight.sum()
            activation = _ACTIVATIONS[kind](z)
            mean = (weight * activation).sum()
            return float((weight * (activation - mean) ** 2).sum().rsqrt())
    return GAMMA_RELU


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
    inverse = torch.where(full, 1 / count.clamp(min=1), 0.0) if normaliser.centre else torch.zeros_like(count)
    rows = _rows(theta, order)
    deviation = rows - rows.sum(1, keepdim=True) * inverse
    if mask is not None:
        # Some filters after the others: torch makes a float copy of what it multiplies with.
        active, some = _rows(mask, order), max(LARGE // deviation.shape[1], 1)
        for start in range(0, len(deviation), some):
            deviation[start : start + some] *= active[start : start + some]
    squares = _dot(deviation, deviation)
    scale = torch.where(full, normaliser.gamma * squares.clamp(min=EPSILON).rsqrt(), 1.0)
    squares = torch.where(full & (squares > EPSILON), squares, torch.inf)
    return Filters(deviation, inverse, scale, squares, theta.shape, order)


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
    return _normalisation(theta, gain, mask, normaliser, count).weight()


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
    """A weight's normalisation in torch's operations; gives the weight or the gradients, not both."""

    filters: Filters
    gain: Tensor
    mask: Tensor | None

    def weight(self) -> Tensor:
        """The weight that acts."""
        return self.filters.weight(self.gain)

    def gradients(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """See :func:`normalise_backward`."""
        return normalise_backward(grad, self.gain, self.mask, self.filters)


class _Fused(NamedTuple):
    """A weight's normalisation in one kernel each way; ``like`` gives its rows the form of the weight."""

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


def _normalisation(
    theta: Tensor, gain: Tensor, mask: Tensor | None, normaliser: Normaliser, count: Tensor | None
) -> _InOperations | _Fused:
    """Arguments: see :func:`normalise`."""
    differentiable = torch.is_grad_enabled() and (theta.requires_grad or gain.requires_grad)
    if theta.dtype != torch.float32 or not has_triton(theta) or differentiable:
        return _InOperations(filters_of(theta, mask, normaliser, count), gain, mask)
    from fedmef_dist.layers.kernels.gpu_filters import FilterRows  # needs Triton

    order = bits.is_channels_last(theta)
    active = None if mask is None else _rows(mask, order)
    rows = FilterRows(_rows(theta, order), active, gain, normaliser.gamma, EPSILON, normaliser.centre)
    return _Fused(rows, theta.shape, order)


class _Normalised(Function):
    """An operation with a normalised weight; keeps its input (pruned or whole) and references to what exists anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta: Tensor,
        gain: Tensor,
        bias: Tensor,
        mask: Tensor | None,
        count: Tensor | None,
        operation: Operation,
        normaliser: Normaliser,
        pruning: Pruning,
    ) -> Tensor:
        x = in_autocast_type(x)
        saved, ctx.kept = keep(x, pruning)  # first, so that its scratch and the output are not alive together
        ctx.save_for_backward(theta, gain, mask, count, *saved)
        ctx.operation, ctx.normaliser = operation, normaliser
        return operation.forward(x, normalise(theta, gain, mask, normaliser, count), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        theta, gain, mask, count, *saved = ctx.saved_tensors
        raw = _Raw(theta, gain, mask, count, ctx.normaliser)
        operation, x = ctx.operation, KeptInput(saved, ctx.kept)

        def weight() -> Tensor:
            return normalise(theta, gain, mask, ctx.normaliser, count).to(grad.dtype)

        def of_parameters(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _gradients_of_parameters(operation, grad, x, raw)

        needs_input = ctx.needs_input_grad[0]
        if not on_host(grad):
            acting = weight() if needs_input else theta.to(grad.dtype)
            of_x, of_weight, of_bias = operation.gradients(grad, x.restore(), acting, (needs_input, True, True))
            return of_x, *raw.gradients(of_weight), of_bias, *[None] * 5
        if not needs_input:
            return None, *of_parameters(x.restore()), *[None] * 5
        heavy = theta.numel() > ctx.kept.shape.numel()
        grad_x, found = backward(operation, grad, x.layout, x.restore, weight, of_parameters, heavy)
        return grad_x, *found, *[None] * 5


class _NormalisedOnce(_Normalised):
    """For a pass that is computed again: its backward pass runs once, so what it keeps whole may go in the middle."""

    clear_saved_tensors_on_access = True


class _Acting(Function):
    """An operation with a weight that is normalised already, and belongs to the model: it is no activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, operation: Operation, pruning: Pruning) -> Tensor:
        x = in_autocast_type(x)
        saved, ctx.kept = keep(x, pruning)
        ctx.save_for_backward(*saved)
        ctx.operation, ctx.weight = operation, weight
        return operation.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, ctx.weight = ctx.weight.to(grad.dtype), None
        x = KeptInput(list(ctx.saved_tensors), ctx.kept).restore()
        return *ctx.operation.gradients(grad, x, weight, ctx.needs_input_grad[:3]), None, None


class _Raw(NamedTuple):
    """A weight before it is normalised; ``active`` counts weights of every filter; see :func:`normalise`."""

    theta: Tensor
    gain: Tensor
    mask: Tensor | None
    active: Tensor | None
    normaliser: Normaliser

    def filters(self, some: slice) -> "_Raw":
        """Some of the filters."""
        mask, active = self.mask, self.active
        return _Raw(
            self.theta[some],
            self.gain[some],
            None if mask is None else mask[some],
            None if active is None else active[some],
            self.normaliser,
        )

    def gradients(self, of_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Those of theta and gain from that of the normalised weight, which is overwritten."""
        normalised = _normalisation(self.theta, self.gain, self.mask, self.normaliser, self.active)
        return normalised.gradients(of_weight.to(self.theta.dtype))


def _gradients_of_parameters(operation: Operation, grad: Tensor, x: Tensor, raw: _Raw) -> tuple[Tensor, Tensor, Tensor]:
    """Those of theta, gain and bias; of a large weight some filters after the others, which do not know each other."""
    parts = operation.parts(x, raw.theta)
    if parts == 1:
        return _from_input(raw, operation, grad, x)
    of_theta, of_gain, of_bias = torch.empty_like(raw.theta), torch.empty_like(raw.gain), torch.empty_like(raw.gain)
    width = raw.theta.shape[0] // parts
    for start in range(0, raw.theta.shape[0], width):
        some = slice(start, start + width)
        found = _from_input(raw.filters(some), *operation.part(grad, x, some, parts))
        for whole, own in zip((of_theta, of_gain, of_bias), found, strict=True):
            whole[some].copy_(own)
        del found, own
    return of_theta, of_gain, of_bias


def _from_input(raw: _Raw, operation: Operation, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_weight, of_bias = operation.of_parameters(grad, x, raw.theta.to(grad.dtype), (True, True))
    assert of_weight is not None
    assert of_bias is not None
    return *raw.gradients(of_weight), of_bias


class NormalisedLayer(nn.Module):
    """What the two layers share: the gain, the constants, and the mask that the parameter space binds.

    Attributes:
        alpha: what is normalised is this power of the parameter (:mod:`powered`); 1: the parameter itself.
        acting: the weight, normalised with those of the other layers (:mod:`model_filters`); None: it is done here.
    """

    weight: Tensor
    bias: Tensor
    gain: nn.Parameter
    normaliser: Normaliser
    pruning: Pruning
    alpha: float = 1.0
    mask: Tensor | None
    count: Tensor | None
    acting: Tensor | None = None

    def set_up(self, normaliser: Normaliser, pruning: Pruning) -> None:
        """Adds the gain (1), sets the bias to 0."""
        self.gain = nn.Parameter(torch.ones(self.weight.shape[0]))
        nn.init.zeros_(self.bias)
        self.normaliser, self.pruning = normaliser, pruning
        self.mask = self.count = None

    @property
    def centre(self) -> bool:
        """Whether every filter's mean is subtracted."""
        return self.normaliser.centre

    def bind_mask(self, mask: Tensor | None) -> None:
        """Uses ``mask`` (bool, like the weight; None: all are active) from now on; it does not change in place.

        Weights outside of it have to be exactly 0.
        """
        self.mask = mask
        self.count = None if mask is None else active_counts(self.weight, mask)
        self.pruning = self.pruning.under(mask)

    def run(self, operation: Operation, x: Tensor) -> Tensor:
        """The operation with the normalised weight."""
        if self.acting is not None:
            return _Acting.apply(x, self.acting, self.bias, operation, self.pruning)
        theta = act(self.weight, self.alpha)
        if not torch.is_grad_enabled():
            weight = normalise(theta, self.gain, self.mask, self.normaliser, self.count)
            return operation.forward(x, weight, self.bias)
        function = _NormalisedOnce if is_repeating() else _Normalised
        return function.apply(
            x, theta, self.gain, self.bias, self.mask, self.count, operation, self.normaliser, self.pruning
        )


class NSConv2d(NormalisedLayer, nn.Conv2d):  # type: ignore[misc]
    """Normalised sparse convolution with a gain and a bias for each filter; replaces convolution and batch norm.

    Args:
        args: those of ``nn.Conv2d``; it always has a bias.
        normaliser: constants of the normalisation.
        pruning: what is kept of the input for the backward pass.
        kwargs: those of ``nn.Conv2d``.
    """

    def __init__(self, *args: Any, normaliser: Normaliser = STANDARD, pruning: Pruning = DENSE, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})
        self.set_up(normaliser, pruning)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves (B, C, H, W)."""
        return self.run(*padded_convolution(self, input))


class NSLinear(NormalisedLayer, nn.Linear):  # type: ignore[misc]
    """Normalised sparse linear layer with a gain and a bias for each output.

    Args:
        args: those of ``nn.Linear``; it always has a bias.
        normaliser: constants of the normalisation.
        pruning: what is kept of the input for the backward pass.
        kwargs: those of ``nn.Linear``.
    """

    def __init__(self, *args: Any, normaliser: Normaliser = STANDARD, pruning: Pruning = DENSE, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})
        self.set_up(normaliser, pruning)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        return self.run(Affine(), input)
