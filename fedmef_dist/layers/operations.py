"""Convolutions and linear maps with their gradients, in the order that takes the least memory.

The gradient of the input does not look at the input, that of the weight not at the weight: with one after the other,
unpacked input, acting weight and the gradients of both are never all there at once. A device takes all gradients in one
operation instead.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmef_dist.layers import bits
from fedmef_dist.layers.kernels import has_loops
from fedmef_dist.layers.powered import powered, slope

_T = TypeVar("_T")
_ParameterGradients = tuple[Tensor | None, Tensor | None]
_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
LARGE = 1 << 20  # elements
_convolution_backward = torch.ops.aten.convolution_backward


class Convolution(NamedTuple):
    """A two-dimensional convolution with zero padding, and its gradients."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def of_input(self, grad: Tensor, like: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input, of which ``like`` has shape and strides."""
        return self.gradients(grad, like, weight, (True, False, False))[0]

    def of_parameters(self, grad: Tensor, x: Tensor, like: Tensor, needed: Sequence[bool]) -> _ParameterGradients:
        """Gradients of weight and bias, as far as they are needed; ``like`` has the weight's shape and strides."""
        if not (needed[1] and self._sums_in_order(grad)):
            return self.gradients(grad, x, like, (False, *needed))[1:]
        from fedmef_dist.layers.kernels.cpu_filters import sum_channels  # needs numba

        of_weight = self.gradients(grad, x, like, (False, True, False))[1] if needed[0] else None
        return of_weight, sum_channels(bits.flatten(grad).view(-1, grad.shape[1]))

    def _sums_in_order(self, grad: Tensor) -> bool:
        """Whether oneDNN makes the bias's gradient, pixel after pixel. A loop does it in a fraction of the time.

        Several threads share it out; convolutions of few images or dilated ones may not be oneDNN's.
        """
        is_its_own = len(grad) >= 16 and max(self.dilation) == 1 and torch.get_num_threads() == 1
        return is_its_own and has_loops(grad) and bits.is_channels_last(grad)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> Any:
        """Those of input, weight and bias at once, as far as they are needed."""
        arguments = (self.stride, self.padding, self.dilation, False, [0, 0], self.groups)
        found = _convolution_backward(grad, x, weight, [weight.shape[0]], *arguments, needed)
        if needed[1] and grad.device.type == "cpu" and grad.dtype == torch.bfloat16:
            # There oneDNN leaves what lay in memory before.
            for axis, tap in self._unseen(grad.shape, x.shape, weight.shape):
                found[1].select(axis, tap).zero_()
        return found

    def _unseen(self, outputs: torch.Size, inputs: torch.Size, weight: torch.Size) -> Iterator[tuple[int, int]]:
        """Rows and columns of the kernel, as (axis, place), that meet nothing but padding, so have no gradient."""
        how = zip(self.stride, self.padding, self.dilation, strict=True)
        for axis, (stride, padding, dilation) in enumerate(how, start=2):
            for tap in range(weight[axis]):
                start = tap * dilation - padding
                output = max(ceil(-start / stride), 0)  # the first whose place is inside, if there is one
                if output >= outputs[axis] or start + output * stride >= inputs[axis]:
                    yield axis, tap

    def parts(self, x: Tensor, weight: Tensor) -> int:
        """In how many parts the weight's gradient is best made: a power of two, 1 where it is not large.

        oneDNN makes it in blocks of 16 x 16 channels, then lays it out twice. Each output channel's is a sum of its
        own, so parts are as exact as the whole; the number depends on shapes alone, as bits may on the number.
        """
        outputs, inputs, *kernel = weight.shape
        block = ceil(outputs / self.groups / 16) * ceil(inputs / 16) * 256 * kernel[0] * kernel[1]
        size, channels, parts = self.groups * block, outputs if self.groups == 1 else self.groups, 1
        while size > max(LARGE, x.numel()) and x.device.type == "cpu" and channels % (2 * parts) == 0:
            parts, size = 2 * parts, size // 2
        return parts

    def part(self, grad: Tensor, x: Tensor, part: slice, parts: int) -> tuple["Convolution", Tensor, Tensor]:
        """The convolution of some output channels alone, with gradient and input as it sees them."""
        if parts == 1:
            return self, grad, x
        if self.groups > 1:
            width = x.shape[1] // parts
            start = part.start * parts // grad.shape[1] * width
            x = _channels(x, slice(start, start + width))
        return self._replace(groups=max(self.groups // parts, 1)), _channels(grad, part), x


def _channels(x: Tensor, part: slice) -> Tensor:
    order = torch.channels_last if bits.is_channels_last(x) else torch.contiguous_format
    return x[:, part].contiguous(memory_format=order)


class Affine(NamedTuple):
    """A linear map, and its gradients."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, weight, bias)

    def of_input(self, grad: Tensor, like: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input."""
        return grad @ weight

    def of_parameters(self, grad: Tensor, x: Tensor, like: Tensor, needed: Sequence[bool]) -> _ParameterGradients:
        """Gradients of weight and bias, as far as they are needed."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            rows.t() @ x.reshape(-1, x.shape[-1]) if needed[0] else None,
            rows.sum(0) if needed[1] else None,
        )

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> _Gradients:
        """Those of input, weight and bias, as far as they are needed."""
        of_input = self.of_input(grad, x, weight) if needed[0] else None
        return of_input, *self.of_parameters(grad, x, weight, needed[1:])

    def parts(self, x: Tensor, weight: Tensor) -> int:
        """Always 1: a matrix product writes its result where it stays."""
        return 1

    def part(self, grad: Tensor, x: Tensor, part: slice, parts: int) -> tuple["Affine", Tensor, Tensor]:
        """All of it."""
        return self, grad, x


class Powered(NamedTuple):
    """An operation whose weight acts as a power of the parameter, which the backward pass computes again."""

    operation: Convolution | Affine
    alpha: float

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with the acting weight."""
        return self.operation.forward(x, powered(weight, self.alpha), bias)

    def of_input(self, grad: Tensor, like: Tensor, weight: Tensor) -> Tensor:
        """Gradient of the input."""
        return self.operation.of_input(grad, like, powered(weight, self.alpha))

    def of_parameters(self, grad: Tensor, x: Tensor, like: Tensor, needed: Sequence[bool]) -> _ParameterGradients:
        """Gradients of parameter and bias, as far as they are needed; ``like`` is the parameter."""
        of_weight, of_bias = self.operation.of_parameters(grad, x, like, needed)
        return None if of_weight is None else of_weight.mul_(slope(like, self.alpha)), of_bias

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: Sequence[bool]) -> _Gradients:
        """Those of input, parameter and bias, as far as they are needed."""
        of_input, of_weight, of_bias = self.operation.gradients(grad, x, powered(weight, self.alpha), needed)
        return of_input, None if of_weight is None else of_weight.mul_(slope(weight, self.alpha)), of_bias

    def parts(self, x: Tensor, weight: Tensor) -> int:
        """Always 1."""
        return 1

    def part(self, grad: Tensor, x: Tensor, part: slice, parts: int) -> tuple["Powered", Tensor, Tensor]:
        """All of it."""
        return self, grad, x


Operation = Convolution | Affine | Powered


class Layout(NamedTuple):
    """How a tensor lies in memory."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Pages:
    """Memory that nobody writes to, so that it takes none: for what an operation needs the shape of alone."""

    def __init__(self) -> None:
        self._pages = mmap.mmap(-1, mmap.PAGESIZE)

    def tensor(self, layout: Layout) -> Tensor:
        """A tensor of this layout; its elements must not be written."""
        last = sum((count - 1) * step for count, step in zip(layout.shape, layout.stride, strict=True))
        size = (last + 1) * layout.dtype.itemsize
        pages = self._pages
        if len(pages) < size:  # the old ones live on in the tensors over them
            self._pages = pages = mmap.mmap(-1, 1 << (size - 1).bit_length(), flags=mmap.MAP_PRIVATE)
        return torch.frombuffer(pages, dtype=layout.dtype).as_strided(layout.shape, layout.stride)


_PAGES = _Pages()


def backward(
    operation: Operation,
    grad: Tensor,
    layout: Layout,
    restore: Callable[[], Tensor],
    weight: Callable[[], Tensor],
    of_parameters: Callable[[Tensor], _T],
    heavy: bool,
) -> tuple[Tensor, _T]:
    """The gradient of the input, and those of the parameters, in the order that takes the least memory of the host.

    Args:
        operation: what was computed.
        grad: gradient of its output.
        layout: of its input.
        restore: gives the input, once; it lives until the parameters' gradients are there.
        weight: gives the weight that acted, once.
        of_parameters: their gradients from the input.
        heavy: the weight takes more than the input: then it goes before the input comes.
    """
    if heavy:
        grad_x = operation.of_input(grad, _PAGES.tensor(layout), weight())
        return grad_x, of_parameters(restore())
    found = of_parameters(restore())
    return operation.of_input(grad, _PAGES.tensor(layout), weight()), found


def padded_convolution(module: nn.Conv2d, x: Tensor) -> tuple[Convolution, Tensor]:
    """The module's convolution, and its input with whatever padding is not plain zeros on both sides already there."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return Convolution(module.stride, module.padding, module.dilation, module.groups), x
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    border = F.pad(x, module._reversed_padding_repeated_twice, mode)
    return Convolution(module.stride, (0, 0), module.dilation, module.groups), border


def in_autocast_type(x: Tensor) -> Tensor:
    """``x`` in the type in which autocast runs convolutions and linear layers."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
