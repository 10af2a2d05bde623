"""One bit an element, and a tensor's elements in memory order.

Everything works on a tensor's memory order, so a channels_last tensor is packed without a copy. Bits are little endian
within a byte.
"""

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.layers.kernels import on_host


def is_channels_last(tensor: Tensor) -> bool:
    """Whether :func:`flatten` takes the elements in channels_last order.

    Where both orders are one, as with one pixel or one channel, the strides tell which is meant, as they tell torch.
    """
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and means_channels_last(tensor)


def means_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes the tensor as channels_last: 4 dimensions, of which the strides grow in that order.

    As torch's own ``suggest_memory_format``, which in Python takes as long as a small layer.
    """
    if tensor.dim() != 4 or tensor.layout != torch.strided:
        return False
    shape, stride, least = tensor.shape, tensor.stride(), 0
    if stride[1] == 0:
        return False
    for at in (1, 3, 2, 0):
        if shape[at] == 0 or stride[at] < least or (at == 0 and least == stride[1]):
            return False
        least = stride[at] * shape[at]
    return True


def flatten(tensor: Tensor, channels_last: bool | None = None) -> Tensor:
    """The elements in memory order: a view where the tensor is contiguous or channels_last, else a copy.

    Args:
        tensor: any.
        channels_last: the order to take; None: the tensor's own.
    """
    if is_channels_last(tensor) if channels_last is None else channels_last:
        return tensor.permute(0, 2, 3, 1).reshape(-1)
    return tensor.reshape(-1)


def like(flat: Tensor, shape: torch.Size, channels_last: bool) -> Tensor:
    """The inverse of :func:`flatten` for a tensor of this shape and memory format."""
    if channels_last:
        batch, channels, height, width = shape
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def pack(flags: Tensor) -> Tensor:
    """A bool (..., n) tensor as uint8 (..., ceil(n / 8))."""
    if on_host(flags):
        # Cloned, so that it lies in torch's memory, where its bytes are counted.
        return torch.from_numpy(np.packbits(flags.numpy(), axis=-1, bitorder="little")).clone()
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -flags.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << _places(flags)).sum(-1, dtype=torch.uint8)


def unpack(bitmap: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack`: the first ``count`` bits of each row as bool (..., count)."""
    if on_host(bitmap):
        bits = np.unpackbits(bitmap.numpy(), axis=-1, count=count, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_))
    return ((bitmap.unsqueeze(-1) >> _places(bitmap)) & 1).flatten(-2)[..., :count].bool()


def _places(like: Tensor) -> Tensor:
    """0 to 7, made on the device: a constant of the host would have to be copied there."""
    return torch.arange(8, dtype=torch.uint8, device=like.device)
