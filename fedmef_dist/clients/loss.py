"""What training minimises and evaluation reports."""

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats over all predictions, 0-dim.

    Args:
        logits: (B, classes) of images, (B, T, classes) of text.
        targets: int64 (B,) or (B, T).
        reduction: ``mean`` or ``sum``.
    """
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)
