"""Normalised sparse convolution and linear layer (FedMef, section 3.3).

Their weight acts normalised, see :mod:`filters`. The normalised weight is not kept but computed again in the backward
pass.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fedmef_dist.layers.activation_pruning import DENSE, KeptInput, Pruning, keep
from fedmef_dist.layers.batchnorm import is_repeating
from fedmef_dist.layers.filters import STANDARD, Normalisation, Normaliser, active_counts, normalisation, normalise
from fedmef_dist.layers.kernels import on_host
from fedmef_dist.layers.operations import Affine, Operation, backward, in_autocast_type, padded_convolution
from fedmef_dist.layers.powered import act


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
        normalised = normalisation(theta, gain, mask, ctx.normaliser, count)
        operation, x = ctx.operation, KeptInput(saved, ctx.kept)

        def weight() -> Tensor:
            return normalised.weight().to(grad.dtype)

        def of_parameters(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return _gradients_of_parameters(operation, grad, x, theta, normalised)

        needs_input = ctx.needs_input_grad[0]
        if not on_host(grad):
            acting = weight() if needs_input else theta.to(grad.dtype)
            of_x, of_weight, of_bias = operation.gradients(grad, x.restore(), acting, (needs_input, True, True))
            return of_x, *normalised.gradients(of_weight.to(theta.dtype)), of_bias, *[None] * 5
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


def _gradients_of_parameters(
    operation: Operation, grad: Tensor, x: Tensor, theta: Tensor, normalised: Normalisation
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of theta, gain and bias; of a large weight some filters after the others, which do not know each other."""
    parts = operation.parts(x, theta)
    if parts == 1:
        return _gradients(operation, grad, x, theta, normalised)
    of_theta, of_gain, of_bias = torch.empty_like(theta), *theta.new_empty(2, theta.shape[0])
    width = theta.shape[0] // parts
    for start in range(0, theta.shape[0], width):
        some = slice(start, start + width)
        own_operation, own_grad, own_x = operation.part(grad, x, some, parts)
        found = _gradients(own_operation, own_grad, own_x, theta[some], normalised.part(some))
        for whole, own in zip((of_theta, of_gain, of_bias), found, strict=True):
            whole[some].copy_(own)
        del found, own, own_grad, own_x
    return of_theta, of_gain, of_bias


def _gradients(
    operation: Operation, grad: Tensor, x: Tensor, theta: Tensor, normalised: Normalisation
) -> tuple[Tensor, Tensor, Tensor]:
    of_weight, of_bias = operation.of_parameters(grad, x, theta.to(grad.dtype), (True, True))
    assert of_weight is not None
    assert of_bias is not None
    return *normalised.gradients(of_weight.to(theta.dtype)), of_bias


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
