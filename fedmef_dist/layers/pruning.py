"""Scaled activation pruning: convolution and linear layers that keep only the large activations for the backward pass.

FedMef, section 3.3 (arXiv 2403.14737). The forward pass uses the whole input. What is kept for the weight's gradient are
the largest entries by magnitude, stored as a bitmap and packed values: 4(1 - p) + 1/8 bytes an element in float32. The
gradients of input and bias need only the weight and stay exact.
"""

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from fedmef_dist.layers import bits
from fedmef_dist.settings import Settings
from fedmef_dist.sparsity.selection import largest


class SapSettings(Settings):
    """Section ``sap``: scaled activation pruning."""

    enabled: bool | Literal["auto"] = Field("auto", description="auto: on for fedmef, off for the others")
    prune_ratio: float = Field(0.5, ge=0, lt=1, description="share of an activation that is not kept, p")
    scope: Literal["tensor", "sample"] = Field("tensor", description="choose over the mini-batch or in each sample")
    first_layer: bool = Field(False, description="also prune the first layer's input, the images")
    output_layer: bool = Field(False, description="also prune the output layer's input")


class Pruning(NamedTuple):
    """How a layer keeps its input: the share that is dropped, and over what it is chosen."""

    ratio: float = 0.0
    per_sample: bool = False


class Kept(NamedTuple):
    """What rebuilds an input beside the saved tensors: its shape and memory order; no bitmap where nothing is dropped."""

    shape: torch.Size
    channels_last: bool
    packed: bool


def keep(x: Tensor, pruning: Pruning) -> tuple[tuple[Tensor, ...], Kept]:
    """The tensors to save for ``x`` and what rebuilds it.

    With a ratio p the round((1 - p) n) entries of largest magnitude are kept (ties by position), of the whole tensor or of
    every sample; with p = 0 the tensor itself.
    """
    kept = Kept(x.shape, bits.is_channels_last(x), pruning.ratio > 0)
    if not kept.packed:
        return (x,), kept
    flat = bits.flatten(x)
    chosen = torch.zeros(flat.numel(), dtype=torch.bool, device=x.device)
    rows = flat.view(x.shape[0], -1) if pruning.per_sample else flat.view(1, -1)
    amount = round((1 - pruning.ratio) * rows.shape[1])
    for number, row in enumerate(rows):
        chosen[number * rows.shape[1] + largest(row.abs(), amount)] = True
    return (bits.pack(chosen), flat[chosen]), kept


def restore(saved: tuple[Tensor, ...], kept: Kept) -> Tensor:
    """The input as far as it was kept, 0 elsewhere."""
    if not kept.packed:
        return saved[0]
    bitmap, values = saved
    flat = values.new_zeros(kept.shape.numel())
    flat[bits.unpack(bitmap, flat.numel())] = values
    return bits.like(flat, kept.shape, kept.channels_last)


class ConvGeometry(NamedTuple):
    """Stride, padding, dilation and groups of a two-dimensional convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Forward convolution."""
    return F.conv2d(x, weight, bias, *geometry)


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, as far as they are needed."""
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], groups, needed
    )


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias of a linear layer, as far as they are needed."""
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        grad @ weight if needed[0] else None,
        rows.t() @ x.reshape(-1, x.shape[-1]) if needed[1] else None,
        rows.sum(0) if needed[2] else None,
    )


class _PrunedConv(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, pruning: Pruning
    ) -> Tensor:
        saved, ctx.kept = keep(x, pruning)
        ctx.save_for_backward(weight, *saved)
        ctx.geometry = geometry
        return convolve(x, weight, bias, geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, *saved = ctx.saved_tensors
        x = restore(tuple(saved), ctx.kept)
        return (*convolve_backward(grad, x, weight, ctx.geometry, ctx.needs_input_grad[:3]), None, None)


class _PrunedLinear(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pruning: Pruning) -> Tensor:
        saved, ctx.kept = keep(x, pruning)
        ctx.save_for_backward(weight, *saved)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, *saved = ctx.saved_tensors
        x = restore(tuple(saved), ctx.kept)
        return (*linear_backward(grad, x, weight, ctx.needs_input_grad[:3]), None)


def geometry_of(module: nn.Conv2d) -> ConvGeometry:
    """A convolution module's geometry; its padding is given in numbers and with zeros."""
    assert not isinstance(module.padding, str)
    return ConvGeometry(module.stride, module.padding, module.dilation, module.groups)  # type: ignore[arg-type]


class PrunedConv2d(nn.Conv2d):
    """A convolution that prunes what it keeps of its input; with ratio 0 the stock one, bit for bit."""

    pruning = Pruning()

    def forward(self, x: Tensor) -> Tensor:
        """Convolves (B, C, H, W)."""
        if not self.pruning.ratio:
            return super().forward(x)
        return _PrunedConv.apply(x, self.weight, self.bias, geometry_of(self), self.pruning)


class PrunedLinear(nn.Linear):
    """A linear layer that prunes what it keeps of its input; with ratio 0 the stock one, bit for bit."""

    pruning = Pruning()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if not self.pruning.ratio:
            return super().forward(x)
        return _PrunedLinear.apply(x, self.weight, self.bias, self.pruning)
