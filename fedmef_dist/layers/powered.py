"""Weights that act as a power of what is trained: sign(theta) |theta|^alpha.

Schwarz, Jayakumar, Pascanu, Latham, Teh: "Powerpropagation: A sparsity inducing weight reparameterisation", NeurIPS
2021, arXiv 2110.00296, section 2. With alpha above 1 large weights learn fast and small ones hardly at all: the
gradient of theta is that of the acting weight times alpha |theta|^(alpha - 1), and so exactly 0 where theta is 0.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def powered(theta: Tensor, alpha: float) -> Tensor:
    """sign(theta) |theta|^alpha, like theta."""
    return theta.abs().pow_(alpha).copysign_(theta)


def slope(theta: Tensor, alpha: float) -> Tensor:
    """The derivative of :func:`powered`, like theta."""
    return theta.abs().pow_(alpha - 1).mul_(alpha)


def root(weight: Tensor, alpha: float) -> Tensor:
    """The theta that acts as this weight, like it."""
    return powered(weight, 1 / alpha)


class _Powered(Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(theta)
        ctx.alpha = alpha
        return powered(theta, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (theta,) = ctx.saved_tensors
        return slope(theta, ctx.alpha).mul_(grad), None


def act(theta: Tensor, alpha: float) -> Tensor:
    """:func:`powered` for autograd, which keeps nothing but theta; with alpha 1 theta itself."""
    return theta if alpha == 1 else _Powered.apply(theta, alpha)
