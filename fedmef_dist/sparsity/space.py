"""All parameters and averaged buffers of a model as views into one flat vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedmef_dist.sparsity.mask import Mask


@dataclass(frozen=True)
class Slice:
    """Where one tensor of the model lies in the flat vector: ``[start, stop)`` in storage order.

    ``centred`` tells that the layer subtracts every filter's mean from its weights (NSConv, NSLinear); ``gamma`` is the
    constant of a layer that normalises its filters, None where none is normalised; ``groups`` are a convolution's.
    """

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    centred: bool = False
    gamma: float | None = None
    groups: int = 1

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    @property
    def rows(self) -> int:
        """Output filters of a weight; the slice viewed as ``(rows, -1)`` has one filter a row."""
        return self.shape[0]

    @property
    def filter_floor(self) -> int:
        """Active weights that every filter must keep: 2 of a depthwise convolution, 0 of all others."""
        return min(2, prod(self.shape[1:])) if self.groups > 1 and self.shape[1] == 1 else 0

    @property
    def floor(self) -> int:
        """Active weights that the layer must keep: those of its filters, at least 1, for without any it is cut."""
        return max(1, self.rows * self.filter_floor)

    def view(self, flat: Tensor) -> Tensor:
        """The tensor over its part of ``flat``; a convolution's weight lies there as O,H,W,I: channels_last."""
        part = flat[self.start : self.stop]
        if len(self.shape) == 4:
            out_channels, in_channels, height, width = self.shape
            return part.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
        return part.view(self.shape)


class ParameterSpace:
    """Takes over a model's storage: one vector of values, one of gradients, and one mask with a byte a weight.

    The vector holds the prunable weights first, ``[0, n_prunable)``, then the other parameters, ``[n_prunable,
    n_parameters)``, then the floating-point buffers (running statistics), ``[n_parameters, total)``. Loading,
    averaging, exchanging and saving a model are single operations on it.

    Attributes:
        values: float32 (total,), the model's state; parameters and buffers are views of it.
        parameters: each with its slice, in the order of the vector.
        mask: which prunable weights are active. Layers with a method ``bind_mask`` hold views of it, or None where
            nothing is pruned.
        layers: the prunable slices.
    """

    def __init__(self, model: nn.Module, prunable: Sequence[str]) -> None:
        parameters = dict(model.named_parameters())
        chosen = [name for name in parameters if name in set(prunable)]
        rest = [name for name in parameters if name not in set(prunable)]
        buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        tensors = {**{name: parameters[name] for name in chosen + rest}, **buffers}

        self.slices = self._lay_out(model, tensors)
        self.layers = self.slices[: len(chosen)]
        self.n_prunable = self.layers[-1].stop if chosen else 0
        self.n_parameters = sum(parameter.numel() for parameter in parameters.values())
        self.total = self.slices[-1].stop
        device = next(model.parameters()).device
        self.values = torch.empty(self.total, device=device)
        self._gradient: Tensor | None = None
        self._own_gradients: list[Tensor] = []
        self.mask = Mask.full(self.n_prunable, device)
        self._counted: Mask | None = None
        self._counts: list[int] = []
        self._take_over(model, parameters, buffers)
        self.parameters = [(piece, parameters[piece.name]) for piece in self.slices if piece.name in parameters]
        self._bind_gradient()
        owners = ((layer, model.get_submodule(layer.name.rpartition(".")[0])) for layer in self.layers)
        self._masked: list[tuple[Slice, Any]] = [
            (layer, owner) for layer, owner in owners if hasattr(owner, "bind_mask")
        ]

    @staticmethod
    def _lay_out(model: nn.Module, tensors: dict[str, Tensor]) -> list[Slice]:
        slices, start = [], 0
        for name, tensor in tensors.items():
            owner = model.get_submodule(name.rpartition(".")[0])
            rule = owner if name.endswith("weight") else None
            centred, groups = getattr(rule, "centre", False), getattr(rule, "groups", 1)
            gamma = getattr(getattr(rule, "normaliser", None), "gamma", None)
            slices.append(Slice(name, start, start + tensor.numel(), tuple(tensor.shape), centred, gamma, groups))
            start += tensor.numel()
        return slices

    def _take_over(self, model: nn.Module, parameters: dict[str, nn.Parameter], buffers: dict[str, Tensor]) -> None:
        for piece in self.slices:
            view = piece.view(self.values)
            if piece.name in parameters:
                parameter = parameters[piece.name]
                view.copy_(parameter.detach())
                parameter.data = view
            else:
                view.copy_(buffers[piece.name])
                owner, _, attribute = piece.name.rpartition(".")
                model.get_submodule(owner)._buffers[attribute] = view

    @property
    def gradient(self) -> Tensor:
        """Float32 (n_parameters,); every parameter's ``.grad`` is a view of it. Zero it in place between steps.

        It is there from the start; once released it is made anew, of zeros, when it is asked for.
        """
        return self._bind_gradient() if self._gradient is None else self._gradient

    def _bind_gradient(self) -> Tensor:
        self._gradient = gradient = torch.zeros(self.n_parameters, device=self.values.device)
        self._own_gradients = [piece.view(gradient) for piece, _ in self.parameters]
        self._give_own_gradients()
        return gradient

    def _give_own_gradients(self) -> None:
        for (_, parameter), own in zip(self.parameters, self._own_gradients, strict=True):
            parameter.grad = own

    def begin_backward(self) -> None:
        """Lets :attr:`gradient` be that of the backward passes from here to :meth:`end_backward`, in few launches.

        On the CPU they add to zeros. Elsewhere that would be a launch for each parameter: autograd keeps what comes.
        """
        gradient = self.gradient
        if gradient.device.type == "cpu":
            gradient.zero_()
            return
        for _, parameter in self.parameters:
            parameter.grad = None

    def end_backward(self) -> None:
        """Brings what autograd has kept to its place in :attr:`gradient`; 0 where nothing has come."""
        gradient = self.gradient
        if gradient.device.type == "cpu":
            return
        found = [parameter.grad for _, parameter in self.parameters]
        come = [own for own, new in zip(self._own_gradients, found, strict=True) if new is not None]
        if len(come) < len(found):
            gradient.zero_()
        if come:
            torch._foreach_copy_(come, [new for new in found if new is not None])
        self._give_own_gradients()

    def release_gradient(self) -> None:
        """Gives up the gradients, and with them their memory."""
        self._gradient, self._own_gradients = None, []
        for _, parameter in self.parameters:
            parameter.grad = None

    def gain_of(self, layer: Slice) -> Slice | None:
        """Where the gains g_i of a layer lie, one a filter; None where the layer does not normalise its filters."""
        name = layer.name.removesuffix("weight") + "gain"
        gains = (piece for piece in self.slices if piece.name == name)
        return next(gains, None) if layer.gamma is not None else None

    @property
    def n_dense(self) -> int:
        """Parameters that are never pruned."""
        return self.n_parameters - self.n_prunable

    def packed_size(self, with_weights: bool = True) -> int:
        """Elements of a packed state, see :meth:`pack`."""
        return self.mask.count * with_weights + self.total - self.n_prunable

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What a training step finds in it and leaves in it."""
        gradient = () if self._gradient is None else (self._gradient,)
        return self.values, *gradient, self.mask.active

    def set_mask(self, mask: Mask) -> None:
        """Makes ``mask`` the current one for every layer; values outside it become 0."""
        self.mask = mask
        for layer, owner in self._masked:
            owner.bind_mask(None if mask.is_full else layer.view(mask.active))
        if not mask.is_full:
            # A product would leave zeros with a sign, which a packed state does not carry.
            self.values[: self.n_prunable].masked_fill_(~mask.active, 0)

    def drop_inactive(self, vector: Tensor) -> None:
        """Multiplies the inactive positions of ``vector``, float32 (n_prunable or more,), by 0, in place."""
        if self.mask.is_full:
            return
        if vector.device.type != "cpu":
            vector[: self.n_prunable].mul_(self.mask.active)
            return
        active = self.mask.active.view(torch.uint8)  # twice as fast as by bools
        for layer in self.layers:  # one after another: on the CPU torch makes a float copy of what it multiplies with
            vector[layer.start : layer.stop].mul_(active[layer.start : layer.stop])

    def load(self, values: Tensor) -> None:
        """Copies a state (float32 (total,)) into the model."""
        self.values.copy_(values)

    def pack(self, values: Tensor, with_weights: bool = True) -> Tensor:
        """The active weights and everything behind the prunable part of a state; a view where nothing is left out.

        Args:
            values: float32 (total,).
            with_weights: False leaves out the prunable weights.
        """
        if not with_weights:
            return values[self.n_prunable :]
        if self.mask.is_full:
            return values
        return torch.cat([values[self.mask.index], values[self.n_prunable :]])

    def unpack(self, packed: Tensor, with_weights: bool = True) -> Tensor:
        """The inverse of :meth:`pack`, float32 (total,); what was left out is 0."""
        if with_weights and self.mask.is_full:
            return packed
        values = packed.new_zeros(self.total)
        count = self.mask.count if with_weights else 0
        if with_weights:
            values[self.mask.index] = packed[:count]
        values[self.n_prunable :] = packed[count:]
        return values

    def layer_counts(self, mask: Mask | None = None) -> list[int]:
        """Active weights in each prunable layer."""
        mask = mask or self.mask
        if mask is not self._counted:  # asked for with every client's message, of a mask that does not change
            self._counts = mask.counts(slice(layer.start, layer.stop) for layer in self.layers)
            self._counted = mask
        return list(self._counts)

    @property
    def density(self) -> float:
        """Share of all parameters that are active or never pruned."""
        return (self.mask.count + self.n_dense) / self.n_parameters
