"""Tensors on their way from the host to a device."""

import torch
from torch import Tensor


def brought(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device. From ordinary memory a copy to CUDA would first wait for all work there."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
