"""Scaled activation pruning: convolution and linear layers that keep only large activations for the backward pass.

FedMef, section 3.3 (arXiv 2403.14737). The forward pass uses the whole input. Kept for the weight's gradient are the
largest entries by magnitude, as a bitmap and packed values: 4(1 - p) + 1/8 bytes an element in float32. The gradients
of input and bias need only the weight and stay exact.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedmef_dist.base.settings import Settings
from fedmef_dist.layers import bits
from fedmef_dist.layers.largest import Selection, Selector, pack_largest, unpack_largest

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class SapSettings(Settings):
    """Section ``sap``: scaled activation pruning."""

    enabled: bool | Literal["auto"] = Field("auto", description="auto: on for fedmef, off for the others")
    prune_ratio: float = Field(0.5, ge=0, lt=1, description="share of an activation that is not kept, p")
    scope: Literal["tensor", "sample"] = Field("tensor", description="choose over the mini-batch or in each sample")
    selection: Selection = Field(
        "exact", description="how the threshold is found: exactly, from a sample, or carried over from the step before"
    )
    storage: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="type of the kept values")
    first_layer: bool = Field(False, description="also prune the first layer's input, the images")
    output_layer: bool = Field(False, description="also prune the output layer's input")


_STORAGE = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Pruning:
    """How a layer keeps its input.

    Attributes:
        ratio: the share that is dropped.
        per_sample: what is kept is chosen in each sample, not over the mini-batch.
        storage: type of 16 bits for what is kept; None: its own.
        selection: how the threshold is found.
        selector: finds it; with the selection ``carried`` it remembers the layer's last one.
    """

    ratio: float = 0.0
    per_sample: bool = False
    storage: torch.dtype | None = None
    selection: Selection = "exact"
    selector: Selector = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "selector", Selector(self.selection))

    @property
    def is_dense(self) -> bool:
        """Whether the input is kept as it is."""
        return not self.ratio and self.storage is None


DENSE = Pruning()


def pruning_of(settings: SapSettings) -> Pruning:
    """What the settings ask of one layer."""
    storage = _STORAGE[settings.storage]
    return Pruning(settings.prune_ratio, settings.scope == "sample", storage, settings.selection)


def forget_thresholds(model: nn.Module) -> None:
    """Lets no layer use what it learned from the client before."""
    for module in model.modules():
        pruning = getattr(module, "pruning", None)
        if isinstance(pruning, Pruning):
            pruning.selector.forget()


class Kept(NamedTuple):
    """What rebuilds an input beside the saved tensors.

    Attributes:
        shape: of the input.
        dtype: of the input.
        channels_last: memory order of the input.
        counts: number of packed values in each row; empty where the input was not packed.
    """

    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool
    counts: list[int]


def keep(x: Tensor, pruning: Pruning) -> tuple[tuple[Tensor, ...], Kept]:
    """The tensors to save for ``x`` and what rebuilds it.

    With a ratio p at most round((1 - p) n) entries of largest magnitude are kept (ties by position in memory order, no
    zeros), of the whole tensor or of every sample; with p = 0 all of it.
    """
    if not pruning.ratio:
        return (_narrow(x, pruning.storage),), Kept(x.shape, x.dtype, False, [])
    flat = bits.flatten(x.detach())
    rows = flat.view(x.shape[0] if pruning.per_sample else 1, -1)
    count = round((1 - pruning.ratio) * rows.shape[1])
    bitmap, values, counts = pack_largest(rows, count, pruning.selector)
    return (bitmap, _narrow(values, pruning.storage)), Kept(x.shape, x.dtype, bits.is_channels_last(x), counts)


def _narrow(values: Tensor, storage: torch.dtype | None) -> Tensor:
    """``values`` as the type ``storage`` if that is smaller; what is too large for it becomes its largest number."""
    if storage is None or values.element_size() <= storage.itemsize:
        return values
    largest = torch.finfo(storage).max
    return values.clamp(-largest, largest).to(storage)


def restore(saved: tuple[Tensor, ...], kept: Kept) -> Tensor:
    """The input as far as it was kept, 0 elsewhere."""
    if not kept.counts:
        return saved[0].to(kept.dtype)
    bitmap, values = saved
    columns = kept.shape.numel() // len(kept.counts)
    rows = unpack_largest(bitmap, values.to(kept.dtype), kept.counts, columns)
    return bits.like(rows.view(-1), kept.shape, kept.channels_last)


class Convolution(NamedTuple):
    """A two-dimensional convolution with zero padding, and its gradients."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        """Gradients of input, weight and bias, as far as they are needed."""
        return torch.ops.aten.convolution_backward(
            grad,
            x,
            weight,
            [weight.shape[0]],
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0, 0],
            self.groups,
            needed,
        )


class Affine(NamedTuple):
    """A linear map, and its gradients."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(x, weight, bias)

    def gradients(self, grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool, bool]) -> Gradients:
        """Gradients of input, weight and bias, as far as they are needed."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if needed[0] else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needed[1] else None,
            rows.sum(0) if needed[2] else None,
        )


Operation = Convolution | Affine


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


class _Pruned(Function):
    """An operation whose input is kept pruned. Autocast runs it in its own type, which is then that of what is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, operation: Operation, pruning: Pruning
    ) -> Tensor:
        x = in_autocast_type(x)
        saved, ctx.kept = keep(x, pruning)  # first, so that its scratch and the output are not alive together
        ctx.save_for_backward(weight, *saved)
        ctx.operation = operation
        return operation.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        x = restore(tuple(saved), ctx.kept)
        return (*ctx.operation.gradients(grad, x, weight.to(grad.dtype), ctx.needs_input_grad[:3]), None, None)


class PrunedConv2d(nn.Conv2d):
    """A convolution that prunes what it keeps of its input; with ratio 0 the stock one, bit for bit.

    Args:
        args: those of ``nn.Conv2d``.
        pruning: what is kept.
        kwargs: those of ``nn.Conv2d``.
    """

    def __init__(self, *args: Any, pruning: Pruning = DENSE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pruning = pruning

    def forward(self, input: Tensor) -> Tensor:
        """Convolves (B, C, H, W)."""
        if self.pruning.is_dense or not torch.is_grad_enabled():
            return super().forward(input)
        operation, x = padded_convolution(self, input)
        return _Pruned.apply(x, self.weight, self.bias, operation, self.pruning)


class PrunedLinear(nn.Linear):
    """A linear layer that prunes what it keeps of its input; with ratio 0 the stock one, bit for bit.

    Args:
        args: those of ``nn.Linear``.
        pruning: what is kept.
        kwargs: those of ``nn.Linear``.
    """

    def __init__(self, *args: Any, pruning: Pruning = DENSE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pruning = pruning

    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., in) to (..., out)."""
        if self.pruning.is_dense or not torch.is_grad_enabled():
            return super().forward(input)
        return _Pruned.apply(input, self.weight, self.bias, Affine(), self.pruning)
