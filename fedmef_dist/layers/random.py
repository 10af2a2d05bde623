"""Layers that draw random numbers, from a generator of the client's own."""

import torch
from torch import Tensor, nn

from fedmef_dist.layers import bits


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(bits.pack(kept.view(-1)))  # type: ignore[attr-defined]
        ctx.factor = factor  # type: ignore[attr-defined]
        return x * kept * factor

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (packed,) = ctx.saved_tensors  # type: ignore[attr-defined]
        kept = bits.unpack(packed, grad.numel()).view(grad.shape)
        return grad * kept * ctx.factor, None, None  # type: ignore[attr-defined]


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own and keeps one bit an element.

    Args:
        p: probability that an element becomes 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Scales what is kept by 1 / (1 - p); the identity in evaluation mode."""
        if not self.training or not self.p:
            return x
        # Drawn on the CPU: every device drops the same elements.
        kept = torch.rand(x.shape, generator=self.generator) >= self.p
        return _Masked.apply(x, kept.to(x.device), 1 / (1 - self.p))


def set_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Lets every layer of the model that draws random numbers draw from ``generator``, a CPU one."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
