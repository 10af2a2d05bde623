"""Batch normalisation that survives a batch of one."""

from torch import Tensor, nn
from torch.nn import functional as F


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
        return super().forward(input)
