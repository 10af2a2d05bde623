"""Normalised sparse convolution and linear layer (FedMef, section 3.3).

Scaled weight standardisation (Brock et al. 2021, arXiv 2101.08692) over the active weights A_i of each filter:
w_ij = gamma g_i (theta_ij - mu_i) / sqrt(max(N_i var_i, eps)) on A_i, 0 elsewhere. The outputs are centred at 0 without a
batch, so small activations are the unimportant ones. A filter with fewer than two active weights has no variance and
uses g_i theta_ij. The normalised weight is not kept but computed again in the backward pass.
"""

from math import pi, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from fedmef_dist.layers.pruning import (
    ConvGeometry,
    Pruning,
    convolve,
    convolve_backward,
    geometry_of,
    keep,
    linear_backward,
    restore,
)

GAMMA_RELU = sqrt(2 / (1 - 1 / pi))
EPSILON = 1e-6


class Normaliser(NamedTuple):
    """Constants of the normalisation."""

    gamma: float = GAMMA_RELU
    centre: bool = True


class _Parts(NamedTuple):
    """Deviations (like theta) and, for each filter, 1 / N, the scale, and whether it is normalised."""

    deviation: Tensor
    inverse_count: Tensor
    scale: Tensor
    squares: Tensor


def _parts(theta: Tensor, mask: Tensor, normaliser: Normaliser) -> _Parts:
    dims = tuple(range(1, theta.dim()))
    count = mask.sum(dims, keepdim=True)
    full = count > 1
    inverse = torch.where(full, 1 / count.clamp(min=1), 0.0) if normaliser.centre else torch.zeros_like(count)
    active = theta * mask
    deviation = (active - active.sum(dims, keepdim=True) * inverse) * mask
    squares = deviation.square().sum(dims, keepdim=True)
    scale = torch.where(full, normaliser.gamma * squares.clamp(min=EPSILON).rsqrt(), 1.0)
    # Where the floor EPSILON acts, or nothing is normalised, the scale does not depend on theta.
    squares = torch.where(full & (squares > EPSILON), squares, torch.inf)
    return _Parts(deviation, inverse, scale, squares)


def normalise(theta: Tensor, gain: Tensor, mask: Tensor, normaliser: Normaliser) -> Tensor:
    """The weight that acts, like theta.

    Args:
        theta: raw weight (O, ...).
        gain: (O,).
        mask: like theta, 1 where active.
        normaliser: constants.
    """
    parts = _parts(theta, mask, normaliser)
    return parts.deviation * (parts.scale * gain.view_as(parts.scale))


def normalise_backward(
    grad: Tensor, theta: Tensor, gain: Tensor, mask: Tensor, normaliser: Normaliser
) -> tuple[Tensor, Tensor]:
    """Gradients of theta and gain from that of the normalised weight.

    Inactive positions get what they would as active weights without effect (deviation 0): the server grows by it, and
    the optimiser masks it.
    """
    dims = tuple(range(1, theta.dim()))
    parts = _parts(theta, mask, normaliser)
    along = (grad * parts.deviation).sum(dims, keepdim=True)
    grad_gain = (along * parts.scale).view_as(gain)
    grad_deviation = (grad - parts.deviation * (along / parts.squares)) * (parts.scale * gain.view_as(along))
    mean = (grad_deviation * mask).sum(dims, keepdim=True) * parts.inverse_count
    return grad_deviation - mean, grad_gain


class _NSConv(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta: Tensor,
        gain: Tensor,
        bias: Tensor,
        mask: Tensor,
        geometry: ConvGeometry,
        normaliser: Normaliser,
        pruning: Pruning,
    ) -> Tensor:
        saved, ctx.kept = keep(x, pruning)
        ctx.save_for_backward(theta, gain, mask, *saved)
        ctx.geometry, ctx.normaliser = geometry, normaliser
        return convolve(x, normalise(theta, gain, mask, normaliser).to(x.dtype), bias.to(x.dtype), geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        theta, gain, mask, *saved = ctx.saved_tensors
        x = restore(tuple(saved), ctx.kept)
        weight = normalise(theta, gain, mask, ctx.normaliser).to(x.dtype)
        needed = (ctx.needs_input_grad[0], True, True)
        grad_x, grad_weight, grad_bias = convolve_backward(grad, x, weight, ctx.geometry, needed)
        assert grad_weight is not None
        assert grad_bias is not None
        grad_theta, grad_gain = normalise_backward(grad_weight.to(theta.dtype), theta, gain, mask, ctx.normaliser)
        return grad_x, grad_theta, grad_gain, grad_bias.to(theta.dtype), None, None, None, None


class _NSLinear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        theta: Tensor,
        gain: Tensor,
        bias: Tensor,
        mask: Tensor,
        normaliser: Normaliser,
        pruning: Pruning,
    ) -> Tensor:
        saved, ctx.kept = keep(x, pruning)
        ctx.save_for_backward(theta, gain, mask, *saved)
        ctx.normaliser = normaliser
        return F.linear(x, normalise(theta, gain, mask, normaliser).to(x.dtype), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        theta, gain, mask, *saved = ctx.saved_tensors
        x = restore(tuple(saved), ctx.kept)
        weight = normalise(theta, gain, mask, ctx.normaliser).to(x.dtype)
        needed = (ctx.needs_input_grad[0], True, True)
        grad_x, grad_weight, grad_bias = linear_backward(grad, x, weight, needed)
        assert grad_weight is not None
        assert grad_bias is not None
        grad_theta, grad_gain = normalise_backward(grad_weight.to(theta.dtype), theta, gain, mask, ctx.normaliser)
        return grad_x, grad_theta, grad_gain, grad_bias.to(theta.dtype), None, None, None


def _cast(x: Tensor) -> Tensor:
    """The input in autocast's type, which an autograd function has to see to itself."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class NSConv2d(nn.Conv2d):
    """Normalised sparse convolution with a gain and a bias for each filter; replaces convolution and batch norm.

    Takes the arguments of ``nn.Conv2d``; it always has a bias.
    """

    pruning = Pruning()

    def __init__(self, *args: Any, normaliser: Normaliser = Normaliser(), **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})
        self.gain = nn.Parameter(torch.ones(self.out_channels))
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]
        self.normaliser = normaliser
        self.mask = torch.ones_like(self.weight, requires_grad=False)

    @property
    def centre(self) -> bool:
        """Whether every filter's mean is subtracted."""
        return self.normaliser.centre

    def bind_mask(self, mask: Tensor) -> None:
        """Uses ``mask`` (like the weight, 1 where active) from now on; its content may change in place."""
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, C, H, W)."""
        return _NSConv.apply(
            _cast(x), self.weight, self.gain, self.bias, self.mask, geometry_of(self), self.normaliser, self.pruning
        )


class NSLinear(nn.Linear):
    """Normalised sparse linear layer with a gain and a bias for each output; takes the arguments of ``nn.Linear``."""

    pruning = Pruning()

    def __init__(self, *args: Any, normaliser: Normaliser = Normaliser(), **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "bias": True})
        self.gain = nn.Parameter(torch.ones(self.out_features))
        nn.init.zeros_(self.bias)
        self.normaliser = normaliser
        self.mask = torch.ones_like(self.weight, requires_grad=False)

    @property
    def centre(self) -> bool:
        """Whether every output's mean weight is subtracted."""
        return self.normaliser.centre

    def bind_mask(self, mask: Tensor) -> None:
        """Uses ``mask`` (like the weight, 1 where active) from now on; its content may change in place."""
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        return _NSLinear.apply(_cast(x), self.weight, self.gain, self.bias, self.mask, self.normaliser, self.pruning)
