"""Tensors on their way between the host and a device."""

import torch
from torch import Tensor


def brought(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device. From ordinary memory a copy to CUDA would first wait for all work there."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def fetched(tensor: Tensor) -> Tensor:
    """A copy on the host, for which nobody waits: it is complete once the device has come so far."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)
