"""Layer normalisation that keeps its normalised input pruned."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fedmef_dist.layers.activation_pruning import DENSE, Pruning, keep, restore


class _Normalise(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float, pruning: Pruning
    ) -> Tensor:
        # As autocast has the stock layer do: in float32, but on a CPU in the type of its input.
        if x.device.type != "cpu" and torch.is_autocast_enabled(x.device.type):
            x = x.float()
        output, mean, factor = torch.native_layer_norm(x, shape, weight, bias, eps)
        saved, ctx.kept = keep(((x - mean) * factor).to(x.dtype), pruning)
        ctx.save_for_backward(weight, bias, factor, *saved)
        ctx.shape = shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, factor, *saved = ctx.saved_tensors
        normal = restore(tuple(saved), ctx.kept)
        # Of a normalised input mean and factor are 0 and 1.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            *(grad, normal, ctx.shape, torch.zeros_like(factor), torch.ones_like(factor), weight, bias),
            (True, weight is not None, bias is not None),
        )
        return grad_x * factor, grad_weight, grad_bias, None, None, None


class LeanLayerNorm(nn.LayerNorm):
    """Keeps the large entries of the normalised input and one number a token; without pruning the stock layer.

    They stand for the input in its own gradient too, in the part that is proportional to it. The gradients of weight
    and bias are those of a pruned linear layer.

    Args:
        args: those of ``nn.LayerNorm``.
        pruning: what is kept.
        kwargs: those of ``nn.LayerNorm``.
    """

    def __init__(self, *args: Any, pruning: Pruning = DENSE, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pruning = pruning

    def forward(self, input: Tensor) -> Tensor:
        """Normalises over the last dimensions."""
        if self.pruning.is_exact or not torch.is_grad_enabled():
            return super().forward(input)
        return _Normalise.apply(input, self.weight, self.bias, list(self.normalized_shape), self.eps, self.pruning)
