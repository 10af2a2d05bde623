"""Scaled activation pruning: convolution and linear layers that keep only large activations for the backward pass.

FedMef, section 3.3 (arXiv 2403.14737). The forward pass uses the whole input. Kept for the weight's gradient are the
largest entries by magnitude, as a bitmap and packed values: 4(1 - p) + 1/8 bytes an element in float32. The gradients
of input and bias need only the weight and stay exact.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fedmef_dist.base.settings import Settings
from fedmef_dist.layers import bits
from fedmef_dist.layers.largest import Selection, Selector, pack_largest, pack_nonzero, unpack_largest

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class SapSettings(Settings):
    """Section ``sap``: scaled activation pruning."""

    enabled: bool | Literal["auto"] = Field(
        "auto", description="auto: what the method prefers (on for fedmef, off for the others)"
    )
    prune_ratio: float = Field(
        0.5, ge=0, lt=1, description="share of an activation that is not kept, p; 0: all of it, zeros packed away"
    )
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
        packs: with ratio 0 zeros are not kept where that takes less memory: without loss, but for the sign of a zero.
        selector: finds it; with the selection ``carried`` it remembers the layer's last one.
    """

    ratio: float = 0.0
    per_sample: bool = False
    storage: torch.dtype | None = None
    selection: Selection = "exact"
    packs: bool = False
    selector: Selector = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "selector", Selector(self.selection))

    @property
    def is_dense(self) -> bool:
        """Whether the input is kept as it is."""
        return self.is_exact and not self.packs

    @property
    def is_exact(self) -> bool:
        """Whether the input comes back as it was, whatever its form in between."""
        return not self.ratio and self.storage is None


DENSE = Pruning()
LOSSLESS = Pruning(packs=True)


def pruning_of(settings: SapSettings) -> Pruning:
    """What the settings ask of one layer."""
    storage, ratio = _STORAGE[settings.storage], settings.prune_ratio
    return Pruning(ratio, settings.scope == "sample", storage, settings.selection, packs=not ratio)


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
        stride: of the input where it comes back whole and lay in memory without gaps.
    """

    shape: torch.Size
    dtype: torch.dtype
    channels_last: bool
    counts: list[int]
    stride: tuple[int, ...] | None = None


Saved = tuple[tuple[Tensor, ...], Kept]


def keep(x: Tensor, pruning: Pruning) -> Saved:
    """The tensors to save for ``x`` and what rebuilds it.

    With a ratio p at most round((1 - p) n) entries of largest magnitude are kept (ties by position in memory order, no
    zeros), of the whole tensor or of every sample; with p = 0 all of it, without its zeros if the pruning packs and
    that takes less. Layers that read the same tensor one after another share what is kept of it.
    """
    if not pruning.ratio and not pruning.packs:
        return (_narrow(x, pruning.storage),), Kept(x.shape, x.dtype, False, [])
    saved = _LAST.find(x, pruning)
    if saved is None:
        saved = _keep_largest(x, pruning) if pruning.ratio else _keep_nonzero(x, pruning)
        _LAST.note(x, pruning, saved)
    if _OBSERVERS:
        _OBSERVERS[-1](x, saved)
    return saved


def _keep_largest(x: Tensor, pruning: Pruning) -> Saved:
    flat = bits.flatten(x.detach())
    rows = flat.view(x.shape[0] if pruning.per_sample else 1, -1)
    count = round((1 - pruning.ratio) * rows.shape[1])
    bitmap, values, counts = pack_largest(rows, count, pruning.selector)
    return (bitmap, _narrow(values, pruning.storage)), Kept(x.shape, x.dtype, bits.is_channels_last(x), counts)


def _keep_nonzero(x: Tensor, pruning: Pruning) -> Saved:
    order = suggest_memory_format(x) == torch.channels_last
    rows = bits.flatten(x.detach(), order).view(1, -1)
    packed = pack_nonzero(rows, packed_limit(x, pruning))
    if packed is None:
        return (_narrow(x, pruning.storage),), Kept(x.shape, x.dtype, False, [])
    bitmap, values = packed
    # A convolution chooses its algorithm, and so the order of its sums, by its input's strides.
    stride = x.stride() if rows.data_ptr() == x.data_ptr() else None
    kept = Kept(x.shape, x.dtype, order, [values.numel()], stride)
    return (bitmap, _narrow(values, pruning.storage)), kept


def packed_limit(x: Tensor, pruning: Pruning) -> int:
    """With fewer elements than this that are not 0 the packed form of ``x`` takes less than the dense one."""
    size = x.element_size() if pruning.storage is None else min(x.element_size(), pruning.storage.itemsize)
    return ceil((size * x.numel() - ceil(x.numel() / 8)) / size)


class _Last:
    """What was kept last, for as long as the tensor that it was made of is there and unchanged."""

    def __init__(self) -> None:
        self._entry: tuple[weakref.ref[Tensor], int, Pruning, Saved] | None = None

    def find(self, x: Tensor, pruning: Pruning) -> Saved | None:
        """What was kept of ``x``, if it was the last one."""
        if self._entry is None:
            return None
        source, version, how, saved = self._entry
        return saved if source() is x and version == x._version and how == pruning else None

    def note(self, x: Tensor, pruning: Pruning, saved: Saved) -> None:
        """Remembers it, unless that would keep ``x`` itself alive."""
        self._entry = (weakref.ref(x, self._forget), x._version, pruning, saved) if saved[1].counts else None

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if self._entry is not None and self._entry[0] is source:
            self._entry = None


_LAST = _Last()
_OBSERVERS: list[Callable[[Tensor, Saved], None]] = []


@contextmanager
def observing(observer: Callable[[Tensor, Saved], None]) -> Iterator[None]:
    """Inside, ``observer`` is told of every input that is packed or pruned and of what was kept of it."""
    _OBSERVERS.append(observer)
    try:
        yield
    finally:
        _OBSERVERS.pop()


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
    if kept.stride is not None:
        return rows.as_strided(kept.shape, kept.stride)
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
    """A convolution that prunes what it keeps of its input; with ratio 0 its gradients are the stock one's to the bit.

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
    """A linear layer that prunes what it keeps of its input; with ratio 0 its gradients are the stock one's to the bit.

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
