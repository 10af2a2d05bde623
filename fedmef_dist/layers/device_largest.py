"""Which elements of a tensor on a device are kept: what ``largest.py`` chooses, bit for bit, without asking the device.

Whatever depends on the numbers stays on the device, and no shape does: of the values that are kept there is a buffer of
the most that can be, filled with zeros behind the last one.
"""

from typing import Literal

import torch
from torch import Tensor

from fedmef_dist.layers.kernels import kernels_for, patterns

Selection = Literal["exact", "sampled", "carried"]
SAMPLE = 1 << 16
TOLERANCE = 0.01
Cut = tuple[Tensor, Tensor]


class DeviceSelector:
    """Finds the magnitude from which elements are kept; see ``Selector``.

    What is quick on a CPU is not here, since without looking at a number nothing can be left out: the exact threshold
    is always found too. The quick selections exist for their bits.

    Args:
        selection: which one.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._carried: Tensor | None = None

    def forget(self) -> None:
        """Starts anew; in place, since a captured graph goes on with the same memory."""
        if self._carried is not None:
            self._carried.zero_()

    def pack(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Packs about ``count`` (at least 1) elements of each of the rows, patterns (R, n)."""
        kernels = kernels_for(rows)
        if self.selection == "exact":
            return kernels.pack_largest(rows, count)
        exact = kernels.find_threshold(rows, count)
        quick = _sampled_cut if self.selection == "sampled" else self._carried_cut
        capacity = min(count + _slack(count), rows.shape[1])
        return kernels.pack(rows, *quick(rows, count, exact), capacity)

    def _carried_cut(self, rows: Tensor, count: int, exact: Cut) -> Cut:
        """A row may take the threshold of the one before it, so they come one after another."""
        if self._carried is None or self._carried.device != rows.device:
            self._carried = torch.zeros(1, dtype=torch.int64, device=rows.device)
        carried, few = self._carried, _has_few(rows, count)
        cuts = []
        for row, too_few, *own in zip(rows.split(1), few.split(1), *(part.split(1) for part in exact), strict=True):
            fits = (carried > 0) & _fits(row, carried, count) & ~too_few
            cuts.append(_where(fits, carried, row.shape[1], (own[0], own[1])))
            carried.copy_(torch.where(fits | too_few, carried, own[0]))
        thresholds, ties = zip(*cuts, strict=True)
        return torch.cat(thresholds), torch.cat(ties)


def _sampled_cut(rows: Tensor, count: int, exact: Cut) -> Cut:
    # An odd step visits every channel of a channels_last tensor.
    columns = rows.shape[1]
    step = columns // SAMPLE | 1
    if step == 1:
        return exact
    sample, cut, settled = rows[:, ::step].contiguous(), exact, _has_few(rows, count)
    rank = torch.full_like(exact[0], count // step)
    for _ in range(2):
        threshold, _ = kernels_for(rows).find_threshold(sample, rank.clamp(1, sample.shape[1]))
        threshold.clamp_(min=1)
        kept = kernels_for(rows).count_from(rows, threshold)
        fits = ~settled & ((kept - count).abs() <= _slack(count))
        cut, settled = _where(fits, threshold, columns, cut), settled | fits
        rank = rank - (kept - count).div(step, rounding_mode="floor")
    return cut


def _slack(count: int) -> int:
    """By how many elements a cut may miss the wanted number."""
    return int(TOLERANCE * count)


def _fits(rows: Tensor, threshold: Tensor, count: int) -> Tensor:
    kept = kernels_for(rows).count_from(rows, threshold.clamp(min=1))
    return (kept - count).abs() <= _slack(count)


def _has_few(rows: Tensor, count: int) -> Tensor:
    """Which rows have no more than ``count`` elements that are not 0, and keep them all; bool (R,)."""
    return kernels_for(rows).count_from(rows, torch.ones(rows.shape[0], dtype=torch.int64, device=rows.device)) <= count


def _where(chosen: Tensor, threshold: Tensor, columns: int, other: Cut) -> Cut:
    """All elements from ``threshold`` on where it is chosen, else the other cut."""
    return torch.where(chosen, threshold, other[0]), torch.where(chosen, columns, other[1])


def pack_on_device(rows: Tensor, count: int, selector: DeviceSelector) -> tuple[Tensor, Tensor]:
    """Packs the elements of largest magnitude of every row; among equal ones the first, and no zeros.

    Args:
        rows: floating (R, n); NaN counts as larger than everything.
        count: of each row, between 1 and n.
        selector: finds the threshold.

    Returns:
        Bitmap, uint8 (R, ceil(n / 8)), in Triton with counts behind it, and the values in order, like ``rows``
        (R, capacity), 0 behind the last one.
    """
    bitmap, values = selector.pack(patterns(rows).contiguous(), count)
    return bitmap, values.view(rows.dtype)


def unpack_on_device(bitmap: Tensor, values: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`pack_on_device`: (R, columns), 0 where nothing was kept."""
    return kernels_for(values).unpack(bitmap, patterns(values), columns).view(values.dtype)
