"""Which elements of a tensor are kept, and in what form: a bitmap and the packed values of the largest."""

from typing import NamedTuple

import torch
from torch import Tensor

from fedmef_dist.layers.device_largest import (
    SAMPLE,
    TOLERANCE,
    DeviceSelector,
    Selection,
    pack_on_device,
    unpack_on_device,
)
from fedmef_dist.layers.kernels import kernels_for, on_host, patterns
from fedmef_dist.layers.room import Room


class _Cut(NamedTuple):
    """The smallest magnitude that is kept (pattern), before which position it is, and the number of elements kept."""

    threshold: int
    end: int
    kept: int

    def fits(self, count: int) -> bool:
        """Whether it keeps about as many as wanted."""
        return abs(self.kept - count) <= TOLERANCE * count


class Selector:
    """Finds the magnitude from which elements are kept.

    ``exact`` looks at all of them. ``sampled`` looks at 65,536 or more at equal distances and corrects itself once,
    ``carried`` takes the threshold of the tensor before; where that would keep more than 1 % too many or too few, both
    fall back to ``exact``.

    Attributes:
        on_device: the same for tensors that are not on the CPU.

    Args:
        selection: which of them.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.on_device = DeviceSelector(selection)
        self._carried: int | None = None

    def forget(self) -> None:
        """Starts anew: what a client keeps must not depend on who was trained before it on the same rank."""
        self._carried = None
        self.on_device.forget()

    def cut(self, row: Tensor, count: int) -> _Cut:
        """Where to cut ``row``, patterns (n,), to keep ``count`` (at least 1) elements; zeros are never kept."""
        kernels = kernels_for(row)
        nonzero = kernels.count_from(row, 1)
        if nonzero <= count:
            return _Cut(1, row.numel(), nonzero)
        quick = self._quick_cut(row, count)
        if quick is not None:
            return quick
        threshold, end = kernels.find_threshold(row, count)
        if self.selection == "carried":
            self._carried = threshold
        return _Cut(threshold, end, count)

    def _quick_cut(self, row: Tensor, count: int) -> _Cut | None:
        """A cut within the tolerance that need not look at all elements, if the selection knows one."""
        if self.selection == "sampled":
            return self._sampled_cut(row, count)
        if self._carried is None:
            return None
        cut = _cut_from(row, self._carried)
        return cut if cut.fits(count) else None

    def _sampled_cut(self, row: Tensor, count: int) -> _Cut | None:
        # An odd step visits every channel of a channels_last tensor.
        step = row.numel() // SAMPLE | 1
        if step == 1:
            return None
        sample = row[::step].contiguous()
        rank = count // step
        for _ in range(2):
            threshold, _ = kernels_for(row).find_threshold(sample, min(max(rank, 1), sample.numel()))
            cut = _cut_from(row, threshold)
            if cut.fits(count):
                return cut
            rank -= (cut.kept - count) // step
        return None


def _cut_from(row: Tensor, threshold: int) -> _Cut:
    threshold = max(threshold, 1)
    return _Cut(threshold, row.numel(), kernels_for(row).count_from(row, threshold))


def pack_largest(rows: Tensor, count: int, selector: Selector) -> tuple[Tensor, Tensor, list[int]]:
    """Packs the elements of largest magnitude of every row; among equal ones the first, and no zeros.

    Args:
        rows: floating (R, n), contiguous; NaN counts as larger than everything.
        count: of each row, between 0 and n.
        selector: finds the threshold.

    Returns:
        Bitmap, uint8 (R, ceil(n / 8)); the values of all rows in order, (kept,), like ``rows``; how many each row has,
        on a device how many it has room for.
    """
    columns = rows.shape[1]
    if count and not on_host(rows):
        bitmap, values = pack_on_device(rows, count, selector.on_device)
        return bitmap, values.flatten(), [values.shape[1]] * rows.shape[0]
    bitmap = torch.zeros(rows.shape[0], (columns + 7) // 8, dtype=torch.uint8, device=rows.device)
    if not count:
        return bitmap, rows.new_empty(0), [0] * rows.shape[0]
    cuts = [selector.cut(row, count) for row in patterns(rows)]
    kept = [cut.kept for cut in cuts]
    values = rows.new_empty(sum(kept))
    for row, cut, bits, part in zip(patterns(rows), cuts, bitmap, patterns(values).split(kept), strict=True):
        kernels_for(rows).pack(row, cut.threshold, cut.end, bits, part)
    return bitmap, values, kept


def pack_nonzero(rows: Tensor, limit: int, room: Room) -> tuple[Tensor, Tensor] | None:
    """Packs the elements that are not 0.

    Args:
        rows: floating (1, n), contiguous.
        limit: so many of them or more are not packed.
        room: for the values on a device.

    Returns:
        Bitmap, uint8 (1, ceil(n / 8)), and the values (kept,), like ``rows``, on a device as many as there is room for;
        None where there are too many.
    """
    if not on_host(rows):
        packed = room.pack(rows, limit)
        return None if packed is None else (packed[0], packed[1].flatten())
    row, kernels = patterns(rows[0]), kernels_for(rows)
    count = kernels.count_from(row, 1)
    if count >= limit:
        return None
    bitmap = torch.zeros(1, (row.numel() + 7) // 8, dtype=torch.uint8, device=rows.device)
    values = rows.new_empty(count)
    kernels.pack(row, 1, row.numel(), bitmap[0], patterns(values))
    return bitmap, values


def unpack_largest(bitmap: Tensor, values: Tensor, kept: list[int], columns: int) -> Tensor:
    """The inverse of :func:`pack_largest`: (R, columns), 0 where nothing was kept."""
    if not any(kept):
        return values.new_zeros(len(kept), columns)
    if not on_host(values):
        return unpack_on_device(bitmap, values.view(len(kept), -1), columns)
    rows = values.new_empty(len(kept), columns)
    for row, bits, part in zip(patterns(rows), bitmap, patterns(values).split(kept), strict=True):
        kernels_for(rows).unpack(bits, part, row)
    return rows
