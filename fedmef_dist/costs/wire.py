"""Messages between the server and the simulated clients, encoded for real, and the bytes they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from pydantic import Field
from torch import Tensor

from fedmef_dist.methods.base import Collection, RoundPlan
from fedmef_dist.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace

VALUE_BYTES = 4
_TAG_BYTES = 1
_DENSE, _BITMAP, _COO, _CSR = range(4)


class WireSettings(Settings):
    """Section ``wire``: what the accounting of messages assumes."""

    stateful_clients: bool = Field(
        True,
        description="clients remember the mask of their last round; false sends it every time, as the paper counts",
    )


def _index_bits(choices: int) -> int:
    return max(ceil(log2(choices)), 1) if choices > 1 else 1


def _sizes(size: int, count: int, rows: int) -> dict[int, int]:
    """Bytes of each encoding of ``count`` values out of ``size`` in ``rows`` rows, the tag included."""
    columns = size // rows
    values = VALUE_BYTES * count
    return {
        _DENSE: _TAG_BYTES + VALUE_BYTES * size,
        _BITMAP: _TAG_BYTES + ceil(size / 8) + values,
        _COO: _TAG_BYTES + ceil(count * _index_bits(size) / 8) + values,
        _CSR: _TAG_BYTES + ceil(rows * _index_bits(columns + 1) / 8) + ceil(count * _index_bits(columns) / 8) + values,
    }


def encoded_bytes(size: int, count: int, rows: int) -> int:
    """Length of what :func:`encode` makes of ``count`` active weights out of ``size`` in ``rows`` filters."""
    return min(_sizes(size, count, rows).values())


def signs_bytes(size: int, count: int, rows: int) -> int:
    """Length of ``count`` signs out of ``size``: their positions in the shortest encoding, and a bit for each."""
    positions = min(length for kind, length in _sizes(size, count, rows).items() if kind != _DENSE)
    return positions - VALUE_BYTES * count + ceil(count / 8)


def _pack(numbers: np.ndarray, bits: int) -> bytes:
    planes = (numbers.astype(np.int64)[:, None] >> np.arange(bits)) & 1
    return np.packbits(planes.astype(np.uint8), bitorder="little").tobytes()


def _unpack(data: bytes, count: int, bits: int) -> np.ndarray:
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    return (planes.astype(np.int64) << np.arange(bits)).sum(1)


def encode(values: np.ndarray, active: np.ndarray, rows: int) -> bytes:
    """One layer's active values and their positions in the shortest of four encodings: dense, bitmap, COO, CSR.

    Args:
        values: float32 (size,); what is inactive is not sent.
        active: bool (size,).
        rows: filters; size is a multiple of it.
    """
    size, count = active.size, int(active.sum())
    sizes = _sizes(size, count, rows)
    kind = min(sizes, key=lambda tag: (sizes[tag], tag))
    kept = values[active].astype("<f4").tobytes()
    index = np.flatnonzero(active)
    if kind == _DENSE:
        body = np.where(active, values, 0).astype("<f4").tobytes()
    elif kind == _BITMAP:
        body = np.packbits(active, bitorder="little").tobytes() + kept
    elif kind == _COO:
        body = _pack(index, _index_bits(size)) + kept
    else:
        columns = size // rows
        per_row = active.reshape(rows, columns).sum(1)
        body = _pack(per_row, _index_bits(columns + 1)) + _pack(index % columns, _index_bits(columns)) + kept
    return bytes([kind]) + body


def decode(message: bytes, size: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of :func:`encode`: positions, int64 (count,), and values, float32 (count,).

    The dense encoding gives all ``size`` positions.

    Raises:
        ValueError: the message is none of the four encodings, or its length fits no count.
    """
    kind, body = message[0], message[1:]
    if kind not in (_DENSE, _BITMAP, _COO, _CSR):
        raise ValueError(f"unknown encoding {kind}")
    count = _count_of(kind, len(message), size, rows)
    values = np.frombuffer(body[len(body) - VALUE_BYTES * count :], "<f4")
    positions = np.arange(size)
    if kind == _BITMAP:
        positions = np.flatnonzero(np.unpackbits(np.frombuffer(body[: ceil(size / 8)], np.uint8), bitorder="little"))
    elif kind == _COO:
        positions = _unpack(body[: len(body) - VALUE_BYTES * count], count, _index_bits(size))
    elif kind == _CSR:
        columns = size // rows
        head = ceil(rows * _index_bits(columns + 1) / 8)
        per_row = _unpack(body[:head], rows, _index_bits(columns + 1))
        inside = _unpack(body[head : len(body) - VALUE_BYTES * count], count, _index_bits(columns))
        positions = np.repeat(np.arange(rows), per_row) * columns + inside
    return positions, values


def _count_of(kind: int, length: int, size: int, rows: int) -> int:
    """How many values a message of this length holds; lengths grow strictly with the count."""
    if kind == _DENSE:
        return size
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if _sizes(size, middle, rows)[kind] < length else (low, middle)
    if _sizes(size, low, rows)[kind] != length:
        raise ValueError(f"a message of {length} bytes fits no count of values")
    return low


@dataclass(frozen=True)
class WireBytes:
    """Bytes of one round, over all clients of the cohort."""

    up: int
    down: int


class WireLedger:
    """Counts what each sampled client would receive and send.

    While a client knows the mask only values travel. Uplinks carry values, and in an adjusting round each layer's top
    gradients as (index, value).

    Args:
        space: the parameter space.
        clients: size of the population.
        settings: the assumptions.
    """

    def __init__(self, space: ParameterSpace, clients: int, settings: WireSettings) -> None:
        self.space = space
        self.settings = settings
        self.known_version = np.full(clients, -1, dtype=np.int32)

    def round(self, cohort: np.ndarray, uploads: int, mask: Mask, plan: RoundPlan) -> WireBytes:
        """Bytes of one round; remembers which mask the clients now know.

        Args:
            cohort: int64 (K,), the clients that received the model.
            uploads: how many of them sent their update.
            mask: what the round was trained with.
            plan: what the clients sent beside their states.
        """
        counts = self.space.layer_counts(mask)
        tail = VALUE_BYTES * (self.space.total - self.space.n_prunable)
        values = VALUE_BYTES * sum(counts) + tail
        with_mask = tail + self._pairs(counts)
        new = len(cohort)
        if self.settings.stateful_clients:
            new = int((self.known_version[cohort] != mask.version).sum())
        self.known_version[cohort] = mask.version
        if mask.is_full:
            with_mask = values
        down = new * with_mask + (len(cohort) - new) * values + len(cohort) * self._direction(plan.direction)
        up = tail if plan.client_masks else values
        up += sum(self._collection(wanted) for wanted in plan.collections if wanted.travels)
        return WireBytes(up=uploads * up, down=down)

    def _collection(self, wanted: Collection) -> int:
        return self._pairs(wanted.counts)

    def _direction(self, signs: Tensor | None) -> int:
        if signs is None:
            return 0
        counts = [int(signs[layer.start : layer.stop].count_nonzero()) for layer in self.space.layers]
        return sum(
            signs_bytes(layer.size, count, layer.rows) for layer, count in zip(self.space.layers, counts, strict=True)
        )

    def _pairs(self, counts: Sequence[int]) -> int:
        """Positions and values of so many weights in the layers."""
        return sum(
            encoded_bytes(layer.size, count, layer.rows) for layer, count in zip(self.space.layers, counts, strict=True)
        )
