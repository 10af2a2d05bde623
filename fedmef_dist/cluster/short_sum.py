"""Exact sums of 64-bit integers in fewer bytes on the wire: four or five for each that allows it, never a wrong bit.

Values go in blocks of at most 1,024. The ranks first add up how large the values of each block are at most, which
bounds every partial and the final sum. So each block has a width (4, 5, 6 or 8 bytes) in which nothing can overflow:
the low 32 bits, and a signed rest. Each rank then adds up its share of the blocks, which the others send it, and gives
the result to all. That is as many bytes as a ring all-reduce moves, times width / 8, and the same integers come out.
"""

from typing import Protocol

import torch
from torch import Tensor

# Blocks are filled up to as many as there are ranks, so a rank has this many, as far as there are values.
_PARTS, _LEAST, _MOST_BLOCK = 64, 32, 1024
_WIDTHS = (4, 5, 6, 8)
_MOST = 1 << 62
_RESTS = {5: torch.int8, 6: torch.int16}


class Level(Protocol):
    """Ranks that exchange with each other; tensors are contiguous and on the CPU."""

    size: int
    rank: int

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over these ranks, in place."""

    def all_to_all(self, output: Tensor, tensor: Tensor) -> None:
        """Row r of ``tensor`` goes to rank r, whose ``output`` has it in this rank's row."""

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect ``tensor`` of rank r in ``output[r]``."""


def all_reduce_short(values: Tensor, level: Level) -> float:
    """Sums int64 (n,) over the ranks of a level in place; returns the bytes a value that travelled."""
    count, ranks = values.numel(), level.size
    block = max(_LEAST, min(_MOST_BLOCK, count // (_PARTS * ranks)))
    blocks = torch.zeros(-(-count // block), block, dtype=torch.int64)
    blocks.view(-1)[:count] = values
    # Magnitudes, cut off where their sum over the ranks could overflow: such blocks take all eight bytes anyway.
    most = _MOST // ranks
    bound = blocks.amax(1).clamp(max=most).maximum(-blocks.amin(1).clamp(min=-most))
    level.all_reduce(bound)
    parts = []
    for width, chosen in _by_width(bound):
        mine = torch.zeros(-(-chosen.numel() // ranks) * ranks, block, dtype=torch.int64)
        mine[: chosen.numel()] = blocks[chosen]
        parts.append((width, chosen, mine.view(ranks, -1)))
    sent = torch.cat([pack(part, width) for width, _, part in parts], 1)
    received = torch.empty_like(sent)
    level.all_to_all(received, sent)
    sums = [part.sum(0, keepdim=True) for part in _unpacked(received, parts)]
    own = torch.cat([pack(total, width) for (width, _, _), total in zip(parts, sums, strict=True)], 1)
    gathered = torch.empty(ranks, own.shape[1], dtype=torch.uint8)
    level.all_gather(gathered, own[0])
    for (_, chosen, _), part in zip(parts, _unpacked(gathered, parts), strict=True):
        blocks[chosen] = part.reshape(-1, block)[: chosen.numel()]
    values.copy_(blocks.view(-1)[:count])
    return ranks * sent.shape[1] / max(count, 1)


def _by_width(bound: Tensor) -> list[tuple[int, Tensor]]:
    """The widths that occur, and the blocks of each; a width holds what is below 2^(8 width - 1)."""
    found, low = [], -1
    for width in _WIDTHS:
        high = (1 << (8 * width - 1)) - 1
        chosen = ((bound > low) & (bound <= high)).nonzero().flatten()
        low = high
        if chosen.numel():
            found.append((width, chosen))
    return found


def _unpacked(rows: Tensor, parts: list[tuple[int, Tensor, Tensor]]) -> list[Tensor]:
    sizes = [part.shape[1] * width for width, _, part in parts]
    return [unpack(row, width) for (width, _, _), row in zip(parts, rows.split(sizes, 1), strict=True)]


def pack(values: Tensor, width: int) -> Tensor:
    """Each row's integers in so many bytes: int64 (rows, n) -> uint8 (rows, width * n)."""
    if width == 8:
        return values.contiguous().view(torch.uint8)
    low = values.to(torch.int32).view(torch.uint8)
    if width == 4:
        return low
    return torch.cat([low, (values >> 32).to(_RESTS[width]).view(torch.uint8)], 1)


def unpack(rows: Tensor, width: int) -> Tensor:
    """The inverse of :func:`pack`."""
    if width == 8:
        return _seen_as(rows, torch.int64)
    count = rows.shape[1] // width
    low = _seen_as(rows[:, : 4 * count], torch.int32).to(torch.int64)
    if width == 4:
        return low
    rest = _seen_as(rows[:, 4 * count :], _RESTS[width]).to(torch.int64)
    return (low & 0xFFFFFFFF) | (rest << 32)


def _seen_as(rows: Tensor, kind: torch.dtype) -> Tensor:
    """Bytes as larger integers; copied, since they may begin anywhere."""
    return rows.new_empty(rows.shape).copy_(rows).view(kind)
