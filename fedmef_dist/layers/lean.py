"""Activations and pooling that keep bits or bytes for the backward pass instead of dense float copies.

The outputs are those of torch's own layers, bit for bit. Without gradients every layer is torch's own function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from fedmef_dist.layers import bits
from fedmef_dist.layers.kernels import has_triton, kernels_for, pattern, patterns


class _Gate(Function):
    """Passes the gradient where a bit is set: exact for piecewise linear activations with slopes 0 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float | None, inplace: bool) -> Tensor:
        ctx.channels_last = bits.is_channels_last(x)
        if inplace:
            ctx.mark_dirty(x)
        row = patterns(bits.flatten(x.detach()))
        high = torch.iinfo(row.dtype).max if ceiling is None else pattern(ceiling, x.dtype)
        if has_triton(row) and row.is_contiguous() and row.data_ptr() == x.data_ptr():
            output = x if inplace else torch.empty_like(x)
            infinity = pattern(float("inf"), x.dtype)
            target = patterns(bits.flatten(output.detach(), ctx.channels_last))
            ctx.save_for_backward(kernels_for(row).clip(row, high, infinity, target))
            if inplace:
                torch.autograd.graph.increment_version(x)  # as torch's own operations do
            return output
        ctx.save_for_backward(kernels_for(row).pack_between(row, high))
        return _clip(x, ceiling, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bitmap,) = ctx.saved_tensors
        row = patterns(bits.flatten(grad, ctx.channels_last))
        passed = kernels_for(row).select(bitmap, row).view(grad.dtype)
        return bits.like(passed, grad.shape, ctx.channels_last), None, None


def _clip(x: Tensor, ceiling: float | None, inplace: bool) -> Tensor:
    return F.relu(x, inplace) if ceiling is None else F.hardtanh(x, 0.0, ceiling, inplace)


class LeanReLU(nn.Module):
    """ReLU that keeps one bit an element; its gradient is exact.

    Args:
        inplace: overwrite the input, which nobody else may need then.
    """

    ceiling: float | None = None

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0), and not above the ceiling."""
        if torch.is_grad_enabled():
            return _Gate.apply(x, self.ceiling, self.inplace)
        return _clip(x, self.ceiling, self.inplace)


class LeanReLU6(LeanReLU):
    """ReLU6 that keeps one bit an element; its gradient is exact. Argument: see :class:`LeanReLU`."""

    ceiling = 6.0


class _Slopes(Function):
    """Multiplies the gradient by a slope where a bit is not set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, inplace: bool) -> Tensor:
        ctx.save_for_backward(bits.pack(bits.flatten(x.detach()) > 0))
        ctx.channels_last, ctx.slope = bits.is_channels_last(x), slope
        if inplace:
            ctx.mark_dirty(x)
        return F.leaky_relu(x, slope, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bitmap,) = ctx.saved_tensors
        positive = bits.like(bits.unpack(bitmap, grad.numel()), grad.shape, ctx.channels_last)
        return torch.where(positive, grad, grad * ctx.slope), None, None


class LeanLeakyReLU(nn.Module):
    """Leaky ReLU that keeps one bit an element; its gradient is exact.

    Args:
        negative_slope: factor on negative numbers.
        inplace: overwrite the input, which nobody else may need then.
    """

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, x: Tensor) -> Tensor:
        """x, times the slope where it is negative."""
        if torch.is_grad_enabled():
            return _Slopes.apply(x, self.negative_slope, self.inplace)
        return F.leaky_relu(x, self.negative_slope, self.inplace)


class SmoothActivation(NamedTuple):
    """A smooth activation (x, whether in place), its backward function (grad, x), and the range of its derivative."""

    function: Callable[[Tensor, bool], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]
    low: float
    high: float


class _Smooth(Function):
    """Keeps the derivative in 256 levels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, curve: SmoothActivation, inplace: bool) -> Tensor:
        step = (curve.high - curve.low) / 255
        levels = curve.backward(x.new_ones(()).expand_as(x), x).sub_(curve.low).div_(step).round_()
        ctx.save_for_backward(levels.clamp_(0, 255).to(torch.uint8))
        ctx.low, ctx.step = curve.low, step
        if inplace:
            ctx.mark_dirty(x)
        return curve.function(x, inplace)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (levels,) = ctx.saved_tensors
        return levels.to(grad.dtype).mul_(ctx.step).add_(ctx.low).mul_(grad), None, None


class _LeanSmooth(nn.Module):
    """A smooth activation that keeps its derivative in one byte an element.

    A derivative is off by at most 1/510 of its range: 0.0024 for SiLU, 0.0025 for GELU, 0.0040 for Hardswish. The input
    pruned as convolutions prune it would cost 2.1 bytes at p = 0.5 and be off by up to 1/2 where |x| is small.

    Args:
        inplace: overwrite the input, which nobody else may need then.
    """

    curve: SmoothActivation

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        """The activation, like x."""
        if torch.is_grad_enabled():
            return _Smooth.apply(x, self.curve, self.inplace)
        return self.curve.function(x, self.inplace)


class LeanSiLU(_LeanSmooth):
    """SiLU with its derivative in one byte."""

    curve = SmoothActivation(F.silu, torch.ops.aten.silu_backward, -0.0999, 1.0999)


class LeanHardswish(_LeanSmooth):
    """Hardswish with its derivative in one byte."""

    curve = SmoothActivation(F.hardswish, torch.ops.aten.hardswish_backward, -0.5, 1.5)


class LeanGELU(_LeanSmooth):
    """GELU with its derivative in one byte; never in place, as torch's.

    Args:
        approximate: as in ``nn.GELU``.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.curve = SmoothActivation(
            lambda x, inplace: F.gelu(x, approximate=approximate),
            lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate=approximate),
            -0.1291,
            1.1291,
        )


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


class Window(NamedTuple):
    """A pooling window; all but ``ceil_mode`` are (height, width)."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool

    def corners(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """First row and first column of each output's window, shaped to broadcast over (B, C, H, W)."""
        rows = torch.arange(output.shape[2], device=output.device) * self.stride[0] - self.padding[0]
        columns = torch.arange(output.shape[3], device=output.device) * self.stride[1] - self.padding[1]
        return rows.view(-1, 1), columns


def _gradient_of_input(ctx: Any, grad: Tensor) -> Tensor:
    """Memory for it; stands also for the input itself, of which a pooling's gradient needs shape and order alone."""
    order = torch.channels_last if ctx.channels_last else torch.contiguous_format
    return torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=order)


class _MaxPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        output, index = F.max_pool2d(x, *window, return_indices=True)
        top, left = window.corners(output)
        row = (index // x.shape[3] - top) // window.dilation[0]
        column = (index % x.shape[3] - left) // window.dilation[1]
        ctx.save_for_backward((row * window.size[1] + column).to(torch.uint8))
        ctx.shape, ctx.window, ctx.channels_last = x.shape, window, bits.is_channels_last(x)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (offset,) = ctx.saved_tensors
        window, width = ctx.window, ctx.shape[3]
        top, left = window.corners(grad)
        offset = offset.long()
        row = top + offset // window.size[1] * window.dilation[0]
        index = row * width + left + offset % window.size[1] * window.dilation[1]
        grad_x = _gradient_of_input(ctx, grad)
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, grad_x, *window, index, grad_input=grad_x), None


class LeanMaxPool2d(nn.Module):
    """Max-pooling that keeps one byte an output: where in its window the maximum stood. Its gradient is exact.

    Args:
        kernel_size: the window, at most 256 pixels.
        stride: default: the window's size.
        padding: border of minus infinity.
        dilation: distance of the window's pixels.
        ceil_mode: whether windows may begin inside and end outside.

    Raises:
        ValueError: the window has more than 256 pixels.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        size = _pair(kernel_size)
        if not self.fits(size):
            raise ValueError(f"a window of {size[0]} x {size[1]} pixels does not fit one byte")
        self.window = Window(size, _pair(stride or size), _pair(padding), _pair(dilation), ceil_mode)

    @staticmethod
    def fits(kernel_size: int | tuple[int, ...]) -> bool:
        """Whether one byte can say where in such a window a pixel stands."""
        height, width = _pair(kernel_size)
        return height * width <= 256

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W)."""
        if not torch.is_grad_enabled():
            return F.max_pool2d(x, *self.window)
        return _MaxPool.apply(x, self.window)


class _AvgPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, options: tuple[Any, ...]) -> Tensor:
        ctx.shape, ctx.channels_last, ctx.options = x.shape, bits.is_channels_last(x), options
        return F.avg_pool2d(x, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad_x = _gradient_of_input(ctx, grad)
        return torch.ops.aten.avg_pool2d_backward(grad, grad_x, *ctx.options, grad_input=grad_x), None


class LeanAvgPool2d(nn.Module):
    """Average-pooling that keeps nothing. Takes the arguments of ``nn.AvgPool2d``; its gradient is exact."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        size = _pair(kernel_size)
        self.options = (size, _pair(stride or size), _pair(padding), ceil_mode, count_include_pad, divisor_override)

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W)."""
        return _AvgPool.apply(x, self.options)


class _AdaptiveAvgPool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Any) -> Tensor:
        ctx.shape, ctx.channels_last = x.shape, bits.is_channels_last(x)
        return F.adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad_x = _gradient_of_input(ctx, grad)
        return torch.ops.aten._adaptive_avg_pool2d_backward(grad, grad_x, out=grad_x), None


class LeanAdaptiveAvgPool2d(nn.Module):
    """Adaptive average-pooling that keeps nothing; its gradient is exact.

    Args:
        output_size: as in ``nn.AdaptiveAvgPool2d``.
    """

    def __init__(self, output_size: Any) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """Pools (B, C, H, W)."""
        # One pixel is a mean, for which torch keeps nothing either.
        if self.output_size in (1, (1, 1)):
            return F.adaptive_avg_pool2d(x, self.output_size)
        return _AdaptiveAvgPool.apply(x, self.output_size)
