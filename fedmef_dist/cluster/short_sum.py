"""Exact sums of 64-bit integers in fewer bytes on the wire: four or five for each that allows it, never a wrong bit.

Values go in blocks of at most 1,024. The ranks first tell each other how many bytes each block takes (4, 5, 6 or 8: the
low 32 bits, and a signed rest); each then adds up its share of the blocks, which the others send it, says how many
bytes the sums take, and gives them to all. That is as many bytes as a ring all-reduce moves, times width / 8, and the
same integers come out.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# Blocks are filled up to as many as there are ranks, so a rank has this many, as far as there are values.
_PARTS, _LEAST, _MOST_BLOCK = 64, 32, 1024
_WIDTHS = (4, 5, 6, 8)
_COUNT_BITS = 20  # of ranks that need more than a width
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
    parts = []
    for width, chosen in _by_width(blocks, level):
        mine = torch.zeros(-(-chosen.numel() // ranks) * ranks, block, dtype=torch.int64)
        mine[: chosen.numel()] = blocks[chosen]
        parts.append((width, chosen, mine.view(ranks, -1)))
    sent = torch.cat([pack(part, width) for width, _, part in parts], 1)
    received = torch.empty_like(sent)
    level.all_to_all(received, sent)
    shares = _unpacked(received, [(width, part.shape[1]) for width, _, part in parts])
    own = torch.cat([part.sum(0).view(-1, block) for part in shares])
    # The same widths for all ranks' shares, so that they are of one length.
    widths = _by_width(own, level)
    told = torch.cat([pack(own[chosen].view(1, -1), width) for width, chosen in widths], 1)
    gathered = torch.empty(ranks, told.shape[1], dtype=torch.uint8)
    level.all_gather(gathered, told[0])
    sums = own.new_empty(ranks, *own.shape)
    layout = [(width, chosen.numel() * block) for width, chosen in widths]
    for (_, chosen), part in zip(widths, _unpacked(gathered, layout), strict=True):
        sums[:, chosen] = part.view(ranks, -1, block)
    counts = [part.shape[1] // block for _, _, part in parts]
    for (_, chosen, _), part in zip(parts, sums.split(counts, 1), strict=True):
        blocks[chosen] = part.reshape(-1, block)[: chosen.numel()]
    values.copy_(blocks.view(-1)[:count])
    return ranks * (sent.shape[1] + told.shape[1]) / 2 / max(count, 1)


def _by_width(blocks: Tensor, level: Level) -> list[tuple[int, Tensor]]:
    """Which widths hold these blocks, int64 (n, block), on every rank; with the blocks of each."""
    most = blocks.amax(1).maximum((~blocks).amax(1))  # a negative value fits where its complement does
    needs = [(most >> (8 * width - 1) > 0).long() for width in _WIDTHS[:-1]]
    counts = torch.stack([need << place * _COUNT_BITS for place, need in enumerate(needs)]).sum(0)
    level.all_reduce(counts)
    mask = (1 << _COUNT_BITS) - 1
    too_narrow = torch.stack([counts >> place * _COUNT_BITS & mask for place in range(len(needs))]) > 0
    chosen_width = too_narrow.sum(0)
    found = [(width, (chosen_width == number).nonzero().flatten()) for number, width in enumerate(_WIDTHS)]
    return [(width, chosen) for width, chosen in found if chosen.numel()]


def _unpacked(rows: Tensor, layout: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Rows in which so many values of each width follow each other, as integers."""
    pieces = rows.split([width * count for width, count in layout], 1)
    return [unpack(piece, width) for (width, _), piece in zip(layout, pieces, strict=True)]


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
