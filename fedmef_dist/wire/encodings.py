"""Encodings of a message's numbers, each with its exact length: what methods choose from for what they send.

An encoding works on one block of a range at a time. A method that knows a shorter form for what both sides already know
adds a class of its own.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import numpy as np
from torch import Tensor

from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.filter_positions import decode_in_filters, encode_in_filters, in_filters_bytes
from fedmef_dist.wire.layer_encoding import (
    Number,
    decode,
    decode_positions,
    decode_signs,
    decode_values,
    encode,
    encode_positions,
    encode_signs,
    encode_values,
    encoded_bytes,
    positions_bytes,
    signs_bytes,
    values_bytes,
)
from fedmef_dist.wire.ranges import Block

Decoded = tuple[np.ndarray, np.ndarray]


class Encoding(ABC):
    """How the numbers of one block become bytes and are read again.

    Attributes:
        has_values: whether a value travels for each position.
        names_positions: whether some positions are named; else the message has a value for all of them.
        is_exact: whether no other positions come back than were named, as votes need it.
    """

    has_values: ClassVar[bool] = True
    names_positions: ClassVar[bool] = True
    is_exact: ClassVar[bool] = True

    @abstractmethod
    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of what :meth:`encode` makes of ``count`` positions."""

    @abstractmethod
    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """The message.

        Args:
            block: of the range.
            active: bool (size,), the positions that are named.
            values: float32 (size,), of any value where nothing is named.
            number: the type in which values travel.
        """

    @abstractmethod
    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions, int64 (count,), ascending within the block, and values, float32 (count,), none without values.

        Raises:
            ValueError: :meth:`encode` makes no such message for the block.
        """


class Whole(Encoding):
    """Every value of the block, in order."""

    names_positions = False

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of all values."""
        return values_bytes(block.size, number)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """All values."""
        return encode_values(values, number)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """All positions and values."""
        return _matching(np.arange(block.size), decode_values(message, number))


class WithMask(Encoding):
    """Weights together with the mask that they are active under; a full block is dense.

    Unlike :class:`Sparse`, a block that is nearly full is not sent as dense: zeros would not tell what is active.
    """

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of mask and values."""
        if count == block.size:
            return encoded_bytes(block.size, count, block.rows, number)
        return positions_bytes(block.size, count, block.rows) + values_bytes(count, number)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """Positions, then values."""
        if active.all():
            return encode(values, active, block.rows, number)
        return encode_positions(active, block.rows) + encode_values(values[active], number)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions and values."""
        return decode(message, block.size, block.rows, number)


class Sparse(Encoding):
    """Some positions with their values, in the shortest of four forms; what is not named counts as 0."""

    is_exact = False

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of the shortest form."""
        return encoded_bytes(block.size, count, block.rows, number)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """The shortest form."""
        return encode(values, active, block.rows, number)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions and values; all positions where the dense form was the shortest."""
        return decode(message, block.size, block.rows, number)


class Positions(Encoding):
    """Positions alone."""

    has_values = False

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of the shortest form."""
        return positions_bytes(block.size, count, block.rows)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """The shortest form."""
        return encode_positions(active, block.rows)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions, and no values."""
        return decode_positions(message, block.size, block.rows), np.empty(0, np.float32)


class Signs(Encoding):
    """A direction, -1 or 1, at some positions; 0 elsewhere."""

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of positions and signs."""
        return signs_bytes(block.size, count, block.rows)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """Positions, and one bit each."""
        return encode_signs(np.where(active, np.sign(values), 0).astype(np.int8), block.rows)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions, and -1 or 1 for each."""
        signs = decode_signs(message, block.size, block.rows)
        positions = np.flatnonzero(signs)
        return positions, signs[positions].astype(np.float32)


class AtKnownPositions(Encoding):
    """Values at positions that both sides know.

    Args:
        space: the parameter space; the range is that of its prunable positions.
        active: bool (n_prunable,), the positions.
    """

    def __init__(self, space: ParameterSpace, active: Tensor) -> None:
        known = active.cpu().numpy()
        self._known = {layer.start: known[layer.start : layer.stop] for layer in space.layers}

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of the values."""
        return values_bytes(count, number)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """The values."""
        return encode_values(values[active], number)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """The positions, and the values."""
        return _matching(np.flatnonzero(self._known[block.start]), decode_values(message, number))


class InFilters(Encoding):
    """Positions and values, where both sides know how many of each filter there are: what is known does not travel.

    Args:
        space: the parameter space; the range is that of its prunable positions.
        counts: int64 (filters,), of all layers one after another.
    """

    def __init__(self, space: ParameterSpace, counts: Tensor) -> None:
        self._rows = {layer.start: layer.rows for layer in space.layers}
        self._filters = counts

    @cached_property
    def _counts(self) -> dict[int, np.ndarray]:
        """Of each layer by where it starts; only a message asks a GPU for them."""
        parts = self._filters.cpu().split([*self._rows.values()])
        return {start: part.numpy() for start, part in zip(self._rows, parts, strict=True)}

    def length(self, block: Block, count: int, number: Number) -> int:
        """Bytes of positions and values."""
        return in_filters_bytes(self._counts[block.start], block.size // block.rows) + values_bytes(count, number)

    def encode(self, block: Block, active: np.ndarray, values: np.ndarray, number: Number) -> bytes:
        """Positions, then values."""
        return encode_in_filters(active, block.rows) + encode_values(values[active], number)

    def decode(self, message: bytes, block: Block, number: Number) -> Decoded:
        """Positions and values."""
        counts, columns = self._counts[block.start], block.size // block.rows
        head = in_filters_bytes(counts, columns)
        return _matching(decode_in_filters(message[:head], counts, columns), decode_values(message[head:], number))


def _matching(positions: np.ndarray, values: np.ndarray) -> Decoded:
    if len(positions) != len(values):
        raise ValueError(f"{len(values)} values where {len(positions)} are due")
    return positions, values
