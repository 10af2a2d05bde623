"""Bytes that the simulated clients would receive and send, counted round by round.

Lengths follow from how many positions and values a message has. `messages.py` encodes the messages of a run for real
and holds their lengths against these.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from fedmef_dist.base.settings import Settings
from fedmef_dist.methods.base import WEIGHTS, Collection, RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace, Slice
from fedmef_dist.wire.encoding import (
    FP32,
    NUMBERS,
    Number,
    encoded_bytes,
    positions_bytes,
    signs_bytes,
    values_bytes,
)

VALUE_BYTES = 4


class WireSettings(Settings):
    """Section ``wire``: how the simulated devices and the server talk."""

    stateful_clients: bool = Field(
        True,
        description="clients remember the mask of their last round; false sends it every time, as the paper counts",
    )
    uplink_values: Literal["fp32", "fp16", "int8"] = Field(
        "fp32",
        description="how clients send prunable weights and gradients; int8 has one scale a layer; all else is fp32",
    )

    @property
    def uplink(self) -> Number:
        """The type of ``uplink_values``."""
        return NUMBERS[self.uplink_values]


@dataclass(frozen=True)
class WireBytes:
    """Bytes of one round, over all clients of the cohort."""

    up: int
    down: int


def masked_bytes(layer: Slice, count: int, number: Number) -> int:
    """Bytes of a layer's active values together with its mask; a full layer is dense.

    Unlike :func:`encoded_bytes`, a layer that is nearly full is not sent as dense: zeros would not tell what is active.
    """
    if count == layer.size:
        return encoded_bytes(layer.size, count, layer.rows, number)
    return positions_bytes(layer.size, count, layer.rows) + values_bytes(count, number)


class WireLedger:
    """Counts what each sampled client would receive and send.

    While a client knows the mask only values travel. Biases, normalisation, the output layer and running statistics
    travel whole, as fp32.

    Args:
        space: the parameter space.
        clients: size of the population.
        settings: the assumptions.
    """

    def __init__(self, space: ParameterSpace, clients: int, settings: WireSettings) -> None:
        self.space = space
        self.settings = settings
        self.known_version = np.full(clients, -1, dtype=np.int32)
        self._tail = VALUE_BYTES * (space.total - space.n_prunable)

    def round(self, asked: np.ndarray, uploads: int, mask: Mask, plan: RoundPlan) -> WireBytes:
        """Bytes of one round; remembers which mask the clients now know.

        Args:
            asked: int64 (K,), the clients that received the model.
            uploads: how many of them sent their update.
            mask: what the round was trained with.
            plan: what else travelled.
        """
        new = len(asked)
        if self.settings.stateful_clients:
            new = int((self.known_version[asked] != mask.version).sum())
        self.known_version[asked] = mask.version
        down = new * self.state_bytes(mask, knows_mask=False) + (len(asked) - new) * self.state_bytes(mask)
        return WireBytes(
            up=uploads * self.uplink_bytes(mask, plan), down=down + len(asked) * self.direction_bytes(plan)
        )

    def state_bytes(self, mask: Mask, knows_mask: bool = True) -> int:
        """A model on its way down, as fp32; with the mask for a client that does not know it. All know the full one."""
        return self._tail + self._weights(mask, FP32, knows_mask or mask.is_full)

    def direction_bytes(self, plan: RoundPlan) -> int:
        """The direction map that a plan sends down; 0 where it has none."""
        if plan.direction is None:
            return 0
        return sum(
            signs_bytes(layer.size, int(plan.direction[layer.start : layer.stop].count_nonzero()), layer.rows)
            for layer in self.space.layers
        )

    def uplink_bytes(self, mask: Mask, plan: RoundPlan) -> int:
        """What one client sends: its state, and what the plan collects beside it."""
        state = 0 if plan.client_masks else self._weights(mask, self.settings.uplink, knows_mask=True)
        return self._tail + state + sum(self._collection(wanted) for wanted in plan.collections if wanted.travels)

    def _weights(self, mask: Mask, number: Number, knows_mask: bool) -> int:
        counts = self.space.layer_counts(mask)
        if knows_mask:
            return sum(values_bytes(count, number) for count in counts)
        return sum(masked_bytes(layer, count, number) for layer, count in zip(self.space.layers, counts, strict=True))

    def _collection(self, wanted: Collection) -> int:
        number = self.settings.uplink
        layers = list(zip(self.space.layers, wanted.counts, strict=True))
        if wanted.name == WEIGHTS:
            return sum(masked_bytes(layer, count, number) for layer, count in layers)
        if wanted.has_values:
            return sum(encoded_bytes(layer.size, count, layer.rows, number) for layer, count in layers)
        return sum(positions_bytes(layer.size, count, layer.rows) for layer, count in layers)
