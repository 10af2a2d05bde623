"""Layers that draw random numbers, from a generator of the client's own."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from fedmef_dist.layers import bits
from fedmef_dist.layers.kernels import kernels_for, patterns


class _Masked(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(bits.pack(kept.flatten()))
        ctx.factor = factor
        return x * kept * factor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (bitmap,) = ctx.saved_tensors
        row = patterns(grad.reshape(-1))
        passed = kernels_for(row).select(bitmap, row).view(grad.dtype)
        return passed.mul_(ctx.factor).view(grad.shape), None, None


def _compensation(p: float) -> float:
    """Keeps the mean where a share p becomes 0; with p = 1 nothing is left to be scaled."""
    return 1 / (1 - p) if p < 1 else 0.0


class RandomLayer(nn.Module):
    """A layer that draws where its generator is, of which it is given one for each client: :func:`set_generator`."""

    p: float

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws numbers."""
        return self.training and self.p > 0


class Dropout(RandomLayer):
    """Dropout that keeps one bit an element.

    Args:
        p: probability that an element becomes 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Scales what is kept by 1 / (1 - p); the identity in evaluation mode."""
        if not self.draws:
            return x
        kept = torch.rand(x.shape, generator=self.generator, device=self.generator.device) >= self.p
        return _Masked.apply(x, kept.to(x.device), _compensation(self.p))


class StochasticDepth(RandomLayer):
    """Drops a residual branch (Huang et al. 2016, arXiv 1603.09382).

    Args:
        p: probability that a branch becomes 0.
        mode: ``batch`` draws once for the mini-batch, ``row`` for every sample.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        """Scales branches that stay by 1 / (1 - p); the identity in evaluation mode."""
        if not self.draws:
            return x
        count, where = x.shape[0] if self.mode == "row" else 1, self.generator.device
        draws = torch.rand(count, generator=self.generator, device=where)
        scale = (draws >= self.p) * _compensation(self.p)
        return x * scale.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))


def set_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Lets every layer of the model that draws random numbers draw from ``generator``, whose numbers it copies."""
    for module in model.modules():
        if isinstance(module, RandomLayer):
            module.generator = generator
