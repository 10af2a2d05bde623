"""One bit an element: masks and sparse values in little memory.

Everything works on a tensor's memory order, so a channels_last tensor is packed without a copy. Bits are little endian
within a byte.
"""

import numpy as np
import torch
from torch import Tensor

_WEIGHTS = (1, 2, 4, 8, 16, 32, 64, 128)
_SAME_SIZE_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_channels_last(tensor: Tensor) -> bool:
    """Whether :func:`flatten` takes the elements in channels_last order."""
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def flatten(tensor: Tensor) -> Tensor:
    """The elements in memory order: a view where the tensor is contiguous or channels_last, else a copy."""
    if is_channels_last(tensor):
        return tensor.permute(0, 2, 3, 1).reshape(-1)
    return tensor.contiguous().view(-1)


def like(flat: Tensor, shape: torch.Size, channels_last: bool) -> Tensor:
    """The inverse of :func:`flatten` for a tensor of this shape and memory format."""
    if channels_last:
        batch, channels, height, width = shape
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def pack(flags: Tensor) -> Tensor:
    """A bool (n,) tensor as uint8 (ceil(n / 8),)."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.packbits(flags.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(flags.to(torch.uint8), (0, -flags.numel() % 8)).view(-1, 8)
    return (padded * torch.tensor(_WEIGHTS, dtype=torch.uint8, device=flags.device)).sum(1, dtype=torch.uint8)


def unpack(bitmap: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack`: the first ``count`` bits as bool (count,)."""
    if bitmap.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bitmap.numpy(), count=count, bitorder="little").view(np.bool_))
    weights = torch.tensor(_WEIGHTS, dtype=torch.uint8, device=bitmap.device)
    return (bitmap.unsqueeze(1) & weights).ne(0).view(-1)[:count]


def pack_values(flat: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The ``chosen`` (bool (n,)) elements of ``flat`` (n,): bitmap, uint8 (ceil(n / 8),), and values in order."""
    if flat.device.type != "cpu":
        return pack(chosen), flat.masked_select(chosen)
    # A quarter of masked_select's time. As integers, since NumPy knows no bfloat16.
    integers = flat.view(_SAME_SIZE_INTEGER[flat.element_size()]).numpy()
    return pack(chosen), torch.from_numpy(np.compress(chosen.numpy(), integers)).view(flat.dtype)


def unpack_values(bitmap: Tensor, values: Tensor, count: int) -> Tensor:
    """The inverse of :func:`pack_values`: (count,), 0 where nothing was chosen."""
    return values.new_zeros(count).masked_scatter_(unpack(bitmap, count), values)


def choose_largest(flat: Tensor, count: int) -> Tensor:
    """Marks exactly ``count`` elements of largest magnitude; among equal ones the first.

    Args:
        flat: floating (n,); NaN counts as larger than everything.
        count: between 0 and n.

    Returns:
        bool (n,).
    """
    if count == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    # Without its sign bit, a float's bit pattern is an integer in the order of magnitude, and NaN has its place.
    kind = _SAME_SIZE_INTEGER[flat.element_size()]
    magnitude = flat.view(kind) & torch.iinfo(kind).max
    threshold = _nth_smallest(magnitude, flat.numel() - count)
    chosen = magnitude >= threshold
    surplus = int(chosen.count_nonzero()) - count
    if surplus:
        tied = (magnitude == threshold).nonzero().flatten()
        chosen[tied[len(tied) - surplus :]] = False
    return chosen


def _nth_smallest(values: Tensor, position: int) -> int:
    if values.device.type == "cpu":
        return int(np.partition(values.numpy(), position)[position])
    return int(values.kthvalue(position + 1).values)
