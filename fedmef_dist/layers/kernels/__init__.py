"""What the lean layers do to bit patterns: on the CPU (compiled loops), on a GPU (Triton) and elsewhere (torch).

The modules offer the same functions on tensors of integers, and their results are the same bit for bit: floats are seen
as integers of their size, see :func:`patterns`. Bits are little endian within a byte.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def patterns(tensor: Tensor) -> Tensor:
    """A float tensor seen as integers. Without the sign bit they are in the order of magnitude, NaN above infinity."""
    return tensor.view(_INTEGERS[tensor.element_size()])


def pattern(number: float, dtype: torch.dtype) -> int:
    """The pattern of one number of this type."""
    return int(patterns(torch.tensor([number], dtype=dtype)))


def kernels_for(tensor: Tensor) -> ModuleType:
    """The module for the tensor's device; imported when first needed, since compiled loops take time to load.

    Triton comes with torch's wheels for CUDA; without it a GPU takes torch's operations.
    """
    return _kernels(tensor.device.type)


@cache
def _kernels(device: str) -> ModuleType:
    name = "cpu" if device == "cpu" else "gpu" if device == "cuda" and find_spec("triton") else "portable"
    return import_module(f"{__name__}.{name}")
