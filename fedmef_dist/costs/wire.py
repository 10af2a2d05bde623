"""Messages between the server and the simulated clients, encoded for real, and the bytes they take."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from fedmef_dist.costs.encoding import encoded_bytes
from fedmef_dist.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace

VALUE_BYTES = 4


class WireSettings(Settings):
    """Section ``wire``: what the accounting of messages assumes."""

    stateful_clients: bool = Field(
        True,
        description="clients remember the mask of their last round; false sends it every time, as the paper counts",
    )


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

    def round(self, cohort: np.ndarray, uploads: int, mask: Mask, gradient_counts: list[int]) -> WireBytes:
        """Bytes of one round; remembers which mask the clients now know.

        Args:
            cohort: int64 (K,), the clients that received the model.
            uploads: how many of them sent their update.
            mask: what the round was trained with.
            gradient_counts: top gradients sent for each layer; empty in an ordinary round.
        """
        counts = self.space.layer_counts(mask)
        tail = VALUE_BYTES * (self.space.total - self.space.n_prunable)
        values = VALUE_BYTES * sum(counts) + tail
        with_mask = tail + sum(
            encoded_bytes(layer.size, count, layer.rows) for layer, count in zip(self.space.layers, counts, strict=True)
        )
        gradients = sum(
            encoded_bytes(layer.size, count, layer.rows)
            for layer, count in zip(self.space.layers, gradient_counts, strict=False)
        )
        new = len(cohort)
        if self.settings.stateful_clients:
            new = int((self.known_version[cohort] != mask.version).sum())
        self.known_version[cohort] = mask.version
        if mask.is_full:
            with_mask = values
        down = new * with_mask + (len(cohort) - new) * values
        return WireBytes(up=uploads * (values + gradients), down=down)
