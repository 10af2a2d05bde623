"""Normalisation that survives a batch of one, and a pass that is computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_REPEATS: ContextVar[bool] = ContextVar("repeats", default=False)


@contextmanager
def repeating() -> Iterator[None]:
    """Inside, forward passes are computed a second time: running statistics have seen their batches already."""
    token = _REPEATS.set(True)
    try:
        yield
    finally:
        _REPEATS.reset(token)


def is_repeating() -> bool:
    """Whether this forward pass is computed a second time; its backward pass then follows at once, and only once."""
    return _REPEATS.get()


class _Lasting(_BatchNorm):
    """Stands before a stock layer in the order of resolution."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, ...)."""
        if self.training and input.numel() == input.shape[1]:
            return self._normalise(input, self.running_mean, self.running_var, training=False)
        if self.training and is_repeating():
            return self._normalise(input, None, None, training=True)
        if not self._avoids_cudnn(input):
            return super().forward(input)
        training, momentum = self.training or self.running_mean is None, self.momentum
        if training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches; only asked for before the first round, so it may wait
                momentum = 1 / float(self.num_batches_tracked)
        return self._normalise(input, self.running_mean, self.running_var, training, momentum or 0.0)

    def _normalise(
        self, x: Tensor, mean: Tensor | None, variance: Tensor | None, training: bool, momentum: float = 0.0
    ) -> Tensor:
        if self._avoids_cudnn(x):
            return torch.native_batch_norm(x, self.weight, self.bias, mean, variance, training, momentum, self.eps)[0]
        return F.batch_norm(x, mean, variance, self.weight, self.bias, training, momentum, self.eps)

    def _avoids_cudnn(self, x: Tensor) -> bool:
        return x.is_cuda and not self._fits_cudnn()

    def _fits_cudnn(self) -> bool:
        """Whether cuDNN may have the layer's vectors.

        Its kernels for channels_last read 16 bytes at once and stop the process at a vector that begins elsewhere, as
        one does in the flat vector behind a bias of ten classes; torch does not look. Its own kernels take any.
        """
        vectors = (self.weight, self.bias, self.running_mean, self.running_var)
        return all(vector is None or vector.data_ptr() % 16 == 0 for vector in vectors)


class BatchNorm2d(_Lasting, nn.BatchNorm2d):
    """The stock layer, but where a training batch has one value a channel it uses the running statistics.

    A client whose last batch is a single image that has shrunk to one pixel would otherwise stop the run.
    """


class BatchNorm1d(_Lasting, nn.BatchNorm1d):
    """The same for (B, C) and (B, C, L), of which a last batch of a single sample has one value a channel."""


class GroupNorm(nn.GroupNorm):
    """The stock layer, but groups of one value are normalised, to 0, in a batch of one as in any other.

    Torch refuses the former: a network that ends in eight channels of one pixel would train until a client's last batch
    is a single image.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, ...)."""
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def normalise_by_batch(model: nn.Module) -> list[_BatchNorm]:
    """Evaluation mode, but batch normalisation takes each batch's own statistics; returns these layers.

    So a network can be looked at before it is trained, and nothing in it draws random numbers.
    """
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.train()
    return layers
