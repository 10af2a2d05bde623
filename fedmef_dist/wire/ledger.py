"""Bytes that the simulated clients would receive and send, counted round by round.

Lengths follow from how many positions and values a message has. `messages.py` encodes the messages of a run for real
and holds their lengths against these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.encodings import Encoding, WithMask
from fedmef_dist.wire.layer_encoding import FP32, NUMBERS, Number, values_bytes
from fedmef_dist.wire.ranges import Block, never_pruned, prunable
from fedmef_dist.wire.traffic import Broadcast, Collection

VALUE_BYTES = 4


class WireSettings(Settings):
    """Section ``wire``: how the simulated devices and the server talk."""

    stateful_clients: bool = Field(
        True,
        description="clients remember the mask of their last round; false sends it every time, as the paper counts",
    )
    uplink_values: Literal["fp32", "fp16", "int8"] = Field(
        "fp32",
        description="how clients send prunable weights and gradients; int8 has one scale per layer; all else is fp32",
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
        self.rest_bytes = values_bytes(never_pruned(space).size, FP32)

    def round(
        self,
        asked: np.ndarray,
        uploads: int,
        mask: Mask,
        broadcasts: Sequence[Broadcast] = (),
        collections: Sequence[Collection] = (),
        returns_weights: bool = True,
        mask_update: Encoding | None = None,
        varied: int | None = None,
        is_part: bool = False,
    ) -> WireBytes:
        """Bytes of one round; remembers which mask the clients now know.

        Args:
            asked: int64 (K,), the clients that received the model.
            uploads: how many of them sent their update.
            mask: what the round was trained with.
            broadcasts: what else went down.
            collections: what else came up.
            returns_weights: whether the prunable weights came up at the positions of the mask.
            mask_update: how the model went down with its mask to those who knew an earlier one.
            is_part: whether the mask is a tier's part of the round's, which is another one in every round.
            varied: what all clients together sent for collections that vary; None: as many as is expected.
        """
        new, earlier = len(asked), 0
        if self.settings.stateful_clients and not is_part:
            outdated = self.known_version[asked] != mask.version
            new = int(outdated.sum())
            if mask_update is not None:
                earlier = int((outdated & (self.known_version[asked] >= 0)).sum())
        if not is_part:
            self.known_version[asked] = mask.version
        down = (new - earlier) * self.state_bytes(mask, knows_mask=False) + (len(asked) - new) * self.state_bytes(mask)
        if earlier:
            assert mask_update is not None
            down += earlier * (self.rest_bytes + self.weights_with_mask_bytes(mask, FP32, mask_update))
        down += len(asked) * sum(self.broadcast_bytes(sent) for sent in broadcasts)
        if varied is not None:
            collections = [wanted for wanted in collections if not wanted.varies]
        up = uploads * self.uplink_bytes(mask, collections, returns_weights) + (varied or 0)
        return WireBytes(up, down)

    def state_bytes(self, mask: Mask, knows_mask: bool = True) -> int:
        """A model on its way down, with its mask for a client that does not know it; everybody knows the full one."""
        return self.rest_bytes + self.weights_bytes(mask, knows_mask or mask.is_full, FP32)

    def returned_bytes(self, mask: Mask) -> int:
        """A client's whole model on its way up, with a mask of its own; it also tells that the mask is full."""
        return self.rest_bytes + self.weights_bytes(mask, False, self.settings.uplink)

    def weights_bytes(self, mask: Mask, knows_mask: bool, number: Number) -> int:
        """The active prunable weights, with or without their positions."""
        if knows_mask:
            return sum(values_bytes(count, number) for count in self.space.layer_counts(mask))
        return self.weights_with_mask_bytes(mask, number)

    def weights_with_mask_bytes(self, mask: Mask, number: Number, encoding: Encoding | None = None) -> int:
        """The active prunable weights with their positions, :class:`WithMask` unless another encoding is given."""
        encoding = encoding or WithMask()
        blocks = zip(prunable(self.space).blocks, self.space.layer_counts(mask), strict=True)
        return sum(encoding.length(block, count, number) for block, count in blocks)

    def broadcast_bytes(self, sent: Broadcast) -> int:
        """What goes down to one client in addition to the model; numbers are fp32."""
        counts = (int(sent.values[block.start : block.stop].count_nonzero()) for block in sent.over.blocks)
        blocks = zip(sent.over.blocks, counts, strict=True)
        return sum(sent.encoding.length(block, count, FP32) for block, count in blocks)

    def uplink_bytes(self, mask: Mask, collections: Sequence[Collection] = (), returns_weights: bool = True) -> int:
        """What one client sends: its state, and what is collected in addition."""
        weights = self.weights_bytes(mask, knows_mask=True, number=self.settings.uplink) if returns_weights else 0
        return self.rest_bytes + weights + sum(self.collection_bytes(wanted) for wanted in collections)

    def collection_bytes(self, wanted: Collection, counts: Sequence[int] | None = None) -> int:
        """What one client sends for a collection; 0 where nothing travels for it.

        ``counts`` is how many positions of each block it names; None: as many as the collection says.
        """
        if not wanted.travels:
            return 0
        blocks = zip(wanted.over.blocks, counts or wanted.counts, strict=True)
        return sum(wanted.encoding.length(block, count, self.number(block)) for block, count in blocks)

    def number(self, block: Block) -> Number:
        """The type in which a block's values go up."""
        return self.settings.uplink if block.quantised else FP32

    def state(self) -> dict[str, Tensor]:
        """``known_version``, int32 (clients,): which mask each client knows."""
        return {"known_version": torch.from_numpy(self.known_version)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave."""
        self.known_version = state["known_version"].numpy().copy()
