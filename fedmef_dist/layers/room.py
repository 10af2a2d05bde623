"""Room on a device for values whose number the host does not know: packing without loss, without waiting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fedmef_dist.layers.kernels import kernels_for, patterns

HEADROOM = 1.25


class Room:
    """How many values other than 0 one layer's input may have.

    The host counts them, for which it waits for the device, and takes just the room that is needed. Inside of
    :func:`without_waiting` it does so for the first tensor of a size alone; later ones get a quarter more room than was
    ever counted. Should one need more than that, a flag is set on the device and what is kept of it is wrong. Whatever
    is packed in time comes back exactly as it was, so results do not depend on what was counted.
    """

    def __init__(self) -> None:
        self.waits = True
        self.overflow: Tensor | None = None
        self._sizes: dict[int, int] = {}

    def pack(self, rows: Tensor, limit: int) -> tuple[Tensor, Tensor] | None:
        """Packs the elements that are not 0.

        Args:
            rows: floating (1, n).
            limit: so much room or more is not taken.

        Returns:
            Bitmap, uint8 (1, ceil(n / 8)), and the values in order, like ``rows`` (1, room), 0 behind the last one.
            None where too much room would be taken.
        """
        row, columns = patterns(rows).contiguous(), rows.shape[1]
        if not self.waits and self._sizes.get(columns, 0) >= limit:
            return None
        smallest = torch.ones(1, dtype=torch.int64, device=rows.device)
        count = kernels_for(rows).count_from(row, smallest)
        room = self._room(columns, count, limit)
        if room >= limit:
            return None
        if self.overflow is None:
            self.overflow = torch.zeros(1, dtype=torch.bool, device=rows.device)
        self.overflow.logical_or_(count > room)
        bitmap, values = kernels_for(rows).pack(row, smallest, torch.full_like(smallest, columns), room)
        return bitmap, values.view(rows.dtype)

    def _room(self, columns: int, count: Tensor, limit: int) -> int:
        if isinstance(count, FakeTensor) or count.is_meta:  # nobody knows
            return limit - 1
        if not self.waits and columns in self._sizes:
            return self._sizes[columns]
        needed = max(int(count), 1)
        self._sizes[columns] = max(self._sizes.get(columns, 0), ceil(HEADROOM * needed))
        return needed


@contextmanager
def without_waiting(rooms: Sequence[Room]) -> Iterator[None]:
    """Inside, the rooms are as large as it was learned. Behind it :func:`overflowed` has to be asked."""
    for room in rooms:
        room.waits = False
    try:
        yield
    finally:
        for room in rooms:
            room.waits = True


def overflowed(rooms: Sequence[Room]) -> bool:
    """Whether any of the rooms was too small since it was asked last; the host waits where one is in use."""
    flags = [room.overflow for room in rooms if room.overflow is not None]
    if not flags:
        return False
    found = bool(torch.cat(flags).any())
    torch._foreach_zero_(flags)
    return found
