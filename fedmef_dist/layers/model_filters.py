"""The filters of a whole model, normalised in one launch each way, where Triton is; elsewhere each layer does its own.

The weights that act then live from the forward pass to the end of the backward pass, 4 bytes a weight, and so do their
gradients, which become those of the raw weights and gains together. That is memory of the GPU, not of the device that
a client stands for, which computes them twice as :mod:`nsconv` says: steps that are measured do so, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fedmef_dist.layers.filters import EPSILON
from fedmef_dist.layers.kernels import has_triton
from fedmef_dist.layers.nsconv import NormalisedLayer
from fedmef_dist.layers.recompute import recomputed_blocks
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.space import Slice

if TYPE_CHECKING:
    from fedmef_dist.layers.kernels.gpu_filters import FlatFilters


class _Weight(NamedTuple):
    """A weight that may be pruned, its gains, and the layer that multiplies with it."""

    weight: Slice
    gain: Slice
    layer: NormalisedLayer


class _Together(Function):
    """Raw weights and gains, in turn, to the weights that act."""

    @staticmethod
    def forward(ctx: Any, filters: "ModelFilters", *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.filters, ctx.mask = filters, filters.mask
        space = filters.space
        out = torch.empty_like(space.values[: space.n_prunable])
        filters.flat.weights(space.values, ctx.mask, out)
        return tuple(one.weight.view(out) for one in filters.weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        filters = ctx.filters
        space, weights = filters.space, filters.weights
        flat = torch.empty_like(space.values[: space.n_parameters])
        torch._foreach_copy_([one.weight.view(flat) for one in weights], list(gradients))
        filters.flat.gradients(flat, space.values, ctx.mask)
        return None, *(piece.view(flat) for one in weights for piece in (one.weight, one.gain))


class ModelFilters:
    """The normalised filters of a model.

    Args:
        model: its parameters live in ``space``.
        space: the flat vector.
    """

    def __init__(self, model: nn.Module, space: ParameterSpace) -> None:
        self.space = space
        owners = ((piece, model.get_submodule(piece.name.rpartition(".")[0])) for piece in space.layers)
        found = ((piece, space.gain_of(piece), owner) for piece, owner in owners)
        self.weights = [
            _Weight(piece, gain, owner)
            for piece, gain, owner in found
            if gain is not None and isinstance(owner, NormalisedLayer) and owner.alpha == 1
        ]
        self._blocks = list(recomputed_blocks(model).values())

    @property
    def mask(self) -> Tensor | None:
        """Of all weights, bool (n_prunable,); None where nothing is pruned."""
        return None if self.space.mask.is_full else self.space.mask.active

    @cached_property
    def flat(self) -> "FlatFilters":
        """What the kernels know of them."""
        from fedmef_dist.layers.kernels.gpu_filters import Block, FlatFilters  # needs Triton

        blocks = [
            Block(piece.start, piece.rows, piece.size // piece.rows, gain.start, *layer.normaliser)
            for piece, gain, layer in self.weights
        ]
        return FlatFilters(blocks, EPSILON, self.space.values.device)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside, a forward pass finds all weights normalised, where one launch may do it.

        That is with gradients, in Triton, and where no block is computed again, which takes its gradients at once.
        """
        together = torch.is_grad_enabled() and self.weights and has_triton(self.space.values)
        if not together or any(block.recomputes for block in self._blocks):
            yield
            return
        parameters = [tensor for one in self.weights for tensor in (one.layer.weight, one.layer.gain)]
        try:
            for one, weight in zip(self.weights, _Together.apply(self, *parameters), strict=True):
                one.layer.acting = weight
            yield
        finally:
            for one in self.weights:
                one.layer.acting = None
