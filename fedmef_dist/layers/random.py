"""Layers that draw random numbers, from a generator of the client's own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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


class Tape:
    """What the layers of a model draw in a pass, so that it can be recorded: what is recorded draws nothing itself.

    Before the pass is played again :meth:`redraw` fills the same memory anew, by the same generators in the same order:
    the numbers are those that the layers would draw.
    """

    def __init__(self) -> None:
        self._draws: list[tuple[RandomLayer, Tensor]] = []
        self._left: Iterator[tuple[RandomLayer, Tensor]] | None = None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, one pass draws as ever, and the tape keeps what."""
        self._draws.clear()
        with self._running(None):
            yield

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Inside, one pass finds all draws on the tape."""
        with self._running(iter(self._draws)):
            yield

    @contextmanager
    def _running(self, left: Iterator[tuple["RandomLayer", Tensor]] | None) -> Iterator[None]:
        self._left, token = left, _TAPE.set(self)
        try:
            yield
        finally:
            _TAPE.reset(token)

    def kept(self, layer: "RandomLayer", shape: Sequence[int], device: torch.device) -> Tensor:
        """What the layer draws now."""
        if self._left is not None:
            return next(self._left)[1]
        self._draws.append((layer, layer.draw(shape).to(device)))
        return self._draws[-1][1]

    def redraw(self) -> None:
        """Draws for the next pass."""
        for layer, kept in self._draws:
            kept.copy_(layer.draw(kept.shape))


_TAPE: ContextVar[Tape | None] = ContextVar("tape", default=None)


class RandomLayer(nn.Module):
    """A layer that draws where its generator is, of which it is given one for each client: :func:`set_generator`.

    Args:
        p: probability that what it draws for becomes 0.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.generator = p, torch.Generator()

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws numbers."""
        return self.training and self.p > 0

    def draw(self, shape: Sequence[int]) -> Tensor:
        """Which of so many stay, bool, where the generator is."""
        return torch.rand(*shape, generator=self.generator, device=self.generator.device) >= self.p

    def kept(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Which of so many stay in this pass, bool, on the device."""
        tape = _TAPE.get()
        return self.draw(shape).to(device) if tape is None else tape.kept(self, shape, device)


class Dropout(RandomLayer):
    """Dropout that keeps one bit an element.

    Args:
        p: probability that an element becomes 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scales what is kept by 1 / (1 - p); the identity in evaluation mode."""
        if not self.draws:
            return x
        return _Masked.apply(x, self.kept(x.shape, x.device), _compensation(self.p))


class ChannelDropout(RandomLayer):
    """Dropout of whole channels, as ``nn.Dropout1d`` to ``nn.Dropout3d``; keeps one factor a channel.

    Args:
        p: probability that a channel becomes 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels of (B, C, ...) that are kept by 1 / (1 - p); the identity in evaluation mode."""
        if not self.draws:
            return x
        scale = self.kept(x.shape[:2], x.device) * _compensation(self.p)
        return x * scale.to(x.dtype).view(*x.shape[:2], *[1] * (x.dim() - 2))


class StochasticDepth(RandomLayer):
    """Drops a residual branch (Huang et al. 2016, arXiv 1603.09382).

    Args:
        p: probability that a branch becomes 0.
        mode: ``batch`` draws once for the mini-batch, ``row`` for every sample.
    """

    def __init__(self, p: float, mode: str) -> None:
        super().__init__(p)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        """Scales branches that stay by 1 / (1 - p); the identity in evaluation mode."""
        if not self.draws:
            return x
        scale = self.kept((x.shape[0] if self.mode == "row" else 1,), x.device) * _compensation(self.p)
        return x * scale.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def set_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Lets every layer of the model that draws random numbers draw from ``generator``, whose numbers it copies."""
    for module in model.modules():
        if isinstance(module, RandomLayer):
            module.generator = generator
