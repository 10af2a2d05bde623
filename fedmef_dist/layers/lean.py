"""Activations and pooling that keep bits or bytes for the backward pass instead of dense float copies."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from fedmef_dist.layers import bits


class _Gate(Function):
    """Passes the gradient where a bit is set: exact for piecewise linear activations with slopes 0 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        flat = bits.flatten(x)
        ctx.save_for_backward(bits.pack((flat > low) & (flat < high)))
        ctx.channels_last = bits.is_channels_last(x)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (packed,) = ctx.saved_tensors
        passed = bits.unpack(packed, grad.numel())
        return grad * bits.like(passed, grad.shape, ctx.channels_last), None, None


class LeanReLU(nn.Module):
    """ReLU that keeps one bit an element."""

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0)."""
        return _Gate.apply(x, 0.0, float("inf"))


class LeanReLU6(nn.Module):
    """ReLU6 that keeps one bit an element."""

    def forward(self, x: Tensor) -> Tensor:
        """min(max(x, 0), 6)."""
        return _Gate.apply(x, 0.0, 6.0)


class _Curve(NamedTuple):
    """A smooth activation, its derivative, and the range of the derivative."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    low: float
    high: float


def _silu_derivative(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _hardswish_derivative(x: Tensor) -> Tensor:
    return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 3 + 0.5))


def _gelu_derivative(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * torch.exp(-0.5 * x * x) * (2 * torch.pi) ** -0.5


SILU = _Curve(F.silu, _silu_derivative, -0.0999, 1.0999)
HARDSWISH = _Curve(F.hardswish, _hardswish_derivative, -0.5, 1.5)
GELU = _Curve(F.gelu, _gelu_derivative, -0.1291, 1.1291)


class _Smooth(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: _Curve) -> Tensor:
        step = (curve.high - curve.low) / 255
        ctx.save_for_backward(((curve.derivative(x) - curve.low) / step).round_().clamp_(0, 255).to(torch.uint8))
        ctx.curve, ctx.step = curve, step
        return curve.function(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (levels,) = ctx.saved_tensors
        return grad * (levels.to(grad.dtype) * ctx.step + ctx.curve.low), None


class LeanSmooth(nn.Module):
    """SiLU, Hardswish or GELU that keeps its derivative in one byte an element.

    The forward pass is exact; a derivative is off by at most 1/510 of its range (0.004 for Hardswish).
    """

    def __init__(self, curve: _Curve) -> None:
        super().__init__()
        self.curve = curve

    def forward(self, x: Tensor) -> Tensor:
        """The activation, like x."""
        return _Smooth.apply(x, self.curve)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, padding: int) -> Tensor:
        output, index = F.max_pool2d(x, size, stride, padding, return_indices=True)
        top, left = _origins(output, stride, padding)
        width = x.shape[3]
        ctx.save_for_backward(((index // width - top) * size + index % width - left).to(torch.uint8))
        ctx.shape, ctx.window = x.shape, (size, stride, padding)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (offset,) = ctx.saved_tensors
        size, stride, padding = ctx.window
        batch, channels, height, width = ctx.shape
        top, left = _origins(grad, stride, padding)
        offset = offset.long()
        index = (offset // size + top) * width + offset % size + left
        flat = grad.new_zeros(batch, channels, height * width)
        flat.scatter_add_(2, index.flatten(2), grad.flatten(2))
        return flat.view(ctx.shape), None, None, None


def _origins(output: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """First row and column of each output's window, shaped to broadcast over (B, C, H, W)."""
    rows = torch.arange(output.shape[2], device=output.device) * stride - padding
    columns = torch.arange(output.shape[3], device=output.device) * stride - padding
    return rows.view(-1, 1), columns.view(1, -1)


class LeanMaxPool2d(nn.Module):
    """Max-pooling over square windows that keeps one byte an output: where in its window the maximum stood.

    Args:
        kernel_size: side of the window, at most 15.
        stride: default: the side.
        padding: border of minus infinity.
    """

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.window = (kernel_size, stride or kernel_size, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W)."""
        return _MaxPool.apply(x, *self.window)
