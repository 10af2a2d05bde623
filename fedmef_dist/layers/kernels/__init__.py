"""What the lean layers do to bit patterns: on the CPU (compiled loops), on a GPU (Triton) and elsewhere (torch).

Floats are seen as integers of their size, see :func:`patterns`; bits are little endian within a byte. ``cpu.py`` works
on one row and with numbers of the host. ``gpu.py`` and ``portable.py`` offer the same functions as each other, on all
rows of a matrix at once: thresholds and counts stay on the device, shapes depend on no number there, and so the host
never waits. All results are the same bit for bit.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def patterns(tensor: Tensor) -> Tensor:
    """A float tensor seen as integers. Without the sign bit they are in the order of magnitude, NaN above infinity."""
    return tensor.view(_INTEGERS[tensor.element_size()])


@cache
def pattern(number: float, dtype: torch.dtype) -> int:
    """The pattern of one number of this type."""
    return int(patterns(torch.tensor([number], dtype=dtype)))


def on_host(tensor: Tensor) -> bool:
    """Whether the numbers lie in the host's memory, where looking at them makes nobody wait."""
    return tensor.device.type == "cpu" and not isinstance(tensor, FakeTensor)


def has_loops(tensor: Tensor) -> bool:
    """Whether the compiled loops of ``cpu_filters.py`` work on this tensor."""
    return on_host(tensor) and tensor.dtype == torch.float32


def kernels_for(tensor: Tensor) -> ModuleType:
    """The module for the tensor's device; imported when first needed, since compiled loops take time to load.

    Triton comes with torch's wheels for CUDA; without it a GPU takes torch's operations.
    """
    return _kernels("fake" if isinstance(tensor, FakeTensor) else tensor.device.type)


def has_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels work on this tensor, those that stand for several of torch's operations too."""
    return kernels_for(tensor).__name__ == f"{__name__}.gpu"


@cache
def _kernels(device: str) -> ModuleType:
    name = "cpu" if device == "cpu" else "gpu" if device == "cuda" and find_spec("triton") else "portable"
    return import_module(f"{__name__}.{name}")
