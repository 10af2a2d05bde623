"""Scaled activation pruning: convolution and linear layers that keep only large activations for the backward pass.

FedMef, section 3.3 (arXiv 2403.14737). The forward pass uses the whole input. Kept for the weight's gradient are the
largest entries by magnitude, as a bitmap and packed values: 4(1 - p) + 1/8 bytes an element in float32. The gradients
of input and bias need only the weight and stay exact.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fedmef_dist.base.settings import Settings
from fedmef_dist.layers import bits
from fedmef_dist.layers.kernels import on_host
from fedmef_dist.layers.largest import Selection, Selector, pack_largest, pack_nonzero, unpack_largest
from fedmef_dist.layers.operations import (
    Affine,
    Convolution,
    Layout,
    Operation,
    Powered,
    backward,
    in_autocast_type,
    padded_convolution,
)
from fedmef_dist.layers.room import Room


class SapSettings(Settings):
    """Section ``sap``: scaled activation pruning."""

    enabled: bool | Literal["auto"] = Field(
        "auto", description="auto: what the method prefers (on for fedmef, off for the others)"
    )
    prune_ratio: float = Field(
        0.5, ge=0, lt=1, description="share of an activation that is not kept, p; 0: all of it, zeros packed away"
    )
    share: Literal["auto", "fixed", "weights"] = Field(
        "auto",
        description="fixed: prune_ratio; weights: in each layer the share of its weights that is inactive (SparsyFed); "
        "auto: what the method prefers (weights for sparsyfed, fixed for the others)",
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
        follows_weights: the ratio is set to the share of the layer's weights that is inactive, with every mask.
        selector: finds it; with the selection ``carried`` it remembers the layer's last one.
        room: for what is packed without loss on a device.
    """

    ratio: float = 0.0
    per_sample: bool = False
    storage: torch.dtype | None = None
    selection: Selection = "exact"
    packs: bool = False
    follows_weights: bool = False
    selector: Selector = field(init=False, compare=False, repr=False)
    room: Room = field(init=False, compare=False, repr=False, default_factory=Room)

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

    def under(self, mask: Tensor | None) -> "Pruning":
        """The same for a layer with this mask (bool, like its weight; None: all are active)."""
        if not self.follows_weights:
            return self
        return self.with_weights(1.0 if mask is None else int(mask.count_nonzero()) / mask.numel())

    def with_weights(self, share: float) -> "Pruning":
        """The same for a layer of which this share of the weights is active."""
        return replace(self, ratio=1 - share) if self.follows_weights else self


DENSE = Pruning()
LOSSLESS = Pruning(packs=True)


def pruning_of(settings: SapSettings) -> Pruning:
    """What the settings ask of one layer."""
    storage, ratio = _STORAGE[settings.storage], settings.prune_ratio
    if settings.share == "weights":
        return Pruning(0.0, settings.scope == "sample", storage, settings.selection, follows_weights=True)
    return Pruning(ratio, settings.scope == "sample", storage, settings.selection, packs=not ratio)


def prunings(modules: Iterable[nn.Module]) -> list[Pruning]:
    """How layers and blocks keep their inputs; for those that do so in a form of their own."""
    found = (getattr(module, name, None) for module in modules for name in ("pruning", "block_pruning"))
    return [pruning for pruning in found if isinstance(pruning, Pruning)]


def forget_thresholds(modules: Iterable[nn.Module]) -> None:
    """Lets no layer use what it learned from the client before."""
    for pruning in prunings(modules):
        pruning.selector.forget()


class Kept(NamedTuple):
    """What rebuilds an input beside the saved tensors.

    Attributes:
        shape: of the input.
        dtype: of the input.
        channels_last: memory order of the input.
        counts: number of packed values in each row, on a device of places for them; empty where nothing was packed.
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
    that takes less. Layers that read the same tensor share what is kept of it.
    """
    if not pruning.ratio and not pruning.packs:
        return (_narrow(x, pruning.storage),), Kept(x.shape, x.dtype, False, [])
    saved = _SOURCES.find(x, pruning)
    if saved is None:
        saved = _keep_largest(x, pruning) if pruning.ratio else _keep_nonzero(x, pruning)
        _SOURCES.note(x, pruning, saved)
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
    order = bits.means_channels_last(x)
    rows = bits.flatten(x.detach(), order).view(1, -1)
    packed = pack_nonzero(rows, packed_limit(x, pruning), pruning.room)
    if packed is None:
        return (_narrow(x, pruning.storage),), Kept(x.shape, x.dtype, False, [])
    bitmap, values = packed
    # A convolution chooses its algorithm, and so the order of its sums, by its input's strides.
    form = torch.channels_last if order else torch.contiguous_format
    stride = x.stride() if x.is_contiguous(memory_format=form) else None
    kept = Kept(x.shape, x.dtype, order, [values.numel()], stride)
    return (bitmap, _narrow(values, pruning.storage)), kept


def packed_limit(x: Tensor, pruning: Pruning) -> int:
    """With fewer elements than this that are not 0 the packed form of ``x`` takes less than the dense one."""
    size = x.element_size() if pruning.storage is None else min(x.element_size(), pruning.storage.itemsize)
    return ceil((size * x.numel() - ceil(x.numel() / 8)) / size)


class _Sources:
    """What was kept of tensors, for as long as they are there and unchanged."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], int, Pruning, Saved]] = {}

    def find(self, x: Tensor, pruning: Pruning) -> Saved | None:
        """What was kept of ``x`` in this way last."""
        source, version, how, saved = self._entries.get(id(x), (_nobody, 0, pruning, None))
        return saved if source() is x and version == x._version and how == pruning else None

    def note(self, x: Tensor, pruning: Pruning, saved: Saved) -> None:
        """Remembers it, unless that would keep ``x`` itself alive."""
        self._drop_changed()
        if saved[1].counts:
            key = id(x)
            source = weakref.ref(x, lambda gone: self._forget(key, gone))
            self._entries[key] = source, x._version, pruning, saved

    def _drop_changed(self) -> None:
        for source, version, *_ in list(self._entries.values()):
            x = source()
            if x is not None and x._version != version:
                self._forget(id(x), source)

    def _forget(self, key: int, source: weakref.ref[Tensor]) -> None:
        if key in self._entries and self._entries[key][0] is source:
            del self._entries[key]


def _nobody() -> None:
    return None


_SOURCES = _Sources()
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


class KeptInput:
    """What the backward pass has of an input: how it lay in memory, and its elements, which are taken once.

    Args:
        saved: the tensors of :func:`keep`; emptied when they are taken.
        kept: what rebuilds the input beside them.
    """

    def __init__(self, saved: list[Tensor], kept: Kept) -> None:
        self._saved, self._kept = saved, kept

    def restore(self) -> Tensor:
        """The input as far as it was kept. Nothing of it stays here."""
        saved = tuple(self._saved)
        self._saved.clear()
        return restore(saved, self._kept)

    @property
    def layout(self) -> Layout:
        """Of what :meth:`restore` will give."""
        kept = self._kept
        if not kept.counts:
            return Layout(kept.shape, self._saved[0].stride(), kept.dtype)
        order = torch.channels_last if kept.channels_last else torch.contiguous_format
        stride = kept.stride or torch.empty(kept.shape, memory_format=order, device="meta").stride()
        return Layout(kept.shape, stride, kept.dtype)


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
        weight, (needs_input, *needed) = weight.to(grad.dtype), ctx.needs_input_grad[:3]
        x = KeptInput(saved, ctx.kept)
        if not on_host(grad):
            return *ctx.operation.gradients(grad, x.restore(), weight, (needs_input, *needed)), None, None

        def of_parameters(x: Tensor) -> tuple[Tensor | None, Tensor | None]:
            return ctx.operation.of_parameters(grad, x, weight, needed)

        if not needs_input:
            return None, *of_parameters(x.restore()), None, None
        heavy = weight.numel() > ctx.kept.shape.numel()
        grad_x, found = backward(ctx.operation, grad, x.layout, x.restore, lambda: weight, of_parameters, heavy)
        return grad_x, *found, None, None


class _PrunedLayer(nn.Module):
    """What the two layers share.

    Attributes:
        pruning: what is kept of the input.
        alpha: the weight acts as this power of the parameter (:mod:`powered`); 1: the parameter acts itself.
    """

    weight: Tensor
    bias: Tensor | None
    pruning: Pruning
    alpha: float = 1.0

    def bind_mask(self, mask: Tensor | None) -> None:
        """Lets a pruning that follows the weights follow ``mask``, bool, like the weight; None: all are active."""
        self.pruning = self.pruning.under(mask)

    @property
    def is_plain(self) -> bool:
        """Whether the layer is torch's own in this pass."""
        return self.alpha == 1 and (self.pruning.is_dense or not torch.is_grad_enabled())

    def run(self, operation: Convolution | Affine, x: Tensor) -> Tensor:
        """The operation with the acting weight, its input kept pruned."""
        acting = operation if self.alpha == 1 else Powered(operation, self.alpha)
        if not torch.is_grad_enabled():
            return acting.forward(x, self.weight, self.bias)
        return _Pruned.apply(x, self.weight, self.bias, acting, self.pruning)


class PrunedConv2d(_PrunedLayer, nn.Conv2d):
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
        return nn.Conv2d.forward(self, input) if self.is_plain else self.run(*padded_convolution(self, input))


class PrunedLinear(_PrunedLayer, nn.Linear):  # type: ignore[misc]
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
        return nn.Linear.forward(self, input) if self.is_plain else self.run(Affine(), input)
