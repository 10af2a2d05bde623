"""Parameter space, mask, allocation, schedule and selection."""

from fedmef_dist.sparsity.mask import Mask
from fedmef_dist.sparsity.space import ParameterSpace, Slice

__all__ = ["Mask", "ParameterSpace", "Slice"]
