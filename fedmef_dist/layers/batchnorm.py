"""Batch normalisation that survives a batch of one, and a pass that is computed again."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


class BatchNorm2d(nn.BatchNorm2d):
    """The stock layer, but where a training batch has one value a channel it uses the running statistics.

    A client whose last batch is a single image that has shrunk to one pixel would otherwise stop the run.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalises (B, C, H, W)."""
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self.training and _REPEATS.get():
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)


def normalise_by_batch(model: nn.Module) -> list[_BatchNorm]:
    """Evaluation mode, but batch normalisation takes each batch's own statistics; returns these layers.

    So a network can be looked at before it is trained, and nothing in it draws random numbers.
    """
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for layer in layers:
        layer.train()
    return layers
