"""The messages between server and simulated clients, encoded to bytes and decoded again.

What the server adds up is what it decoded. As fp32 that is what the clients sent, bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.clients.client import ClientReport
from fedmef_dist.methods.base import WEIGHTS, RoundPlan, Upload
from fedmef_dist.sparsity import Slice
from fedmef_dist.wire.encoding import (
    FP32,
    Number,
    decode,
    decode_positions,
    decode_signs,
    decode_values,
    encode,
    encode_positions,
    encode_signs,
    encode_values,
)
from fedmef_dist.wire.ledger import VALUE_BYTES, WireLedger


class GarbledMessageError(RuntimeError):
    """A message is not as long as the ledger says, or decodes to something else: a fault of this program."""


class Messages:
    """Encodes and decodes what travels, and holds it against the ledger.

    Args:
        ledger: what the lengths should be, and in which type values go up.
    """

    def __init__(self, ledger: WireLedger) -> None:
        self.ledger, self.space = ledger, ledger.space
        self._sent_version = -1

    def broadcast(self, values: Tensor, plan: RoundPlan) -> None:
        """Encodes and decodes the state (float32 (total,)) with its mask, once for each mask, and the direction map.

        Raises:
            GarbledMessageError: a message is not what the ledger counts, or does not decode to what was sent.
        """
        mask = self.space.mask
        if mask.version != self._sent_version and not mask.is_full:
            received, length = self._with_mask(Upload(mask.index, values[mask.index]), FP32)
            tail = values[self.space.n_prunable :]
            self._check(length + tail.nbytes, self.ledger.state_bytes(mask, knows_mask=False), "the model")
            if not torch.equal(received.positions, mask.index) or not _same(received.values, values[mask.index]):
                raise GarbledMessageError("the model does not decode to what was sent")
            self._sent_version = mask.version
        if plan.direction is not None:
            self._send_direction(plan.direction, self.ledger.direction_bytes(plan))

    def receive(self, report: ClientReport, plan: RoundPlan) -> ClientReport:
        """A client's report as the server decodes it.

        Raises:
            GarbledMessageError: its messages are not as long as the ledger counts.
        """
        mask, number = self.space.mask, self.ledger.settings.uplink
        tail = self.space.total - self.space.n_prunable
        uploads, length = {}, VALUE_BYTES * tail
        values = report.values
        if not plan.client_masks:
            weights, sent = self._values(values[: mask.count], number)
            values = torch.cat([weights, values[mask.count :]])
            length += sent
        for wanted in plan.collections:
            uploads[wanted.name] = upload = report.uploads[wanted.name]
            if wanted.travels:
                send = self._with_mask if wanted.name == WEIGHTS else self._collected
                uploads[wanted.name], sent = send(upload, number)
                length += sent
        self._check(length, self.ledger.uplink_bytes(mask, plan), "a client's report")
        return replace(report, values=values, uploads=uploads)

    def _values(self, values: Tensor, number: Number) -> tuple[Tensor, int]:
        """Active values (float32 (count,)) whose positions the receiver knows, and their bytes."""
        parts, length, start = [], 0, 0
        for count in self.space.layer_counts():
            message = encode_values(values[start : start + count].cpu().numpy(), number)
            parts.append(torch.from_numpy(decode_values(message, number)))
            length, start = length + len(message), start + count
        return torch.cat(parts).to(values.device) if parts else values[:0], length

    def _with_mask(self, upload: Upload, number: Number) -> tuple[Upload, int]:
        """Weights and which of their layer are active."""

        def layer_message(layer: Slice, active: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
            if active.all():
                message = encode(values, active, layer.rows, number)
                return *decode(message, layer.size, layer.rows, number), len(message)
            where = encode_positions(active, layer.rows)
            what = encode_values(values[active], number)
            return decode_positions(where, layer.size, layer.rows), decode_values(what, number), len(where) + len(what)

        return self._by_layer(upload, layer_message)

    def _collected(self, upload: Upload, number: Number) -> tuple[Upload, int]:
        """Positions with or without values."""

        def layer_message(layer: Slice, active: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
            if upload.values is None:
                message = encode_positions(active, layer.rows)
                return decode_positions(message, layer.size, layer.rows), values[:0], len(message)
            message = encode(values, active, layer.rows, number)
            positions, decoded = decode(message, layer.size, layer.rows, number)
            return positions, decoded, len(message)

        return self._by_layer(upload, layer_message)

    def _by_layer(
        self,
        upload: Upload,
        layer_message: Callable[[Slice, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, int]],
    ) -> tuple[Upload, int]:
        """``layer_message``: (layer, active (size,), values (size,)) -> positions, values and bytes."""
        active, values = np.zeros(self.space.n_prunable, np.bool_), np.zeros(self.space.n_prunable, np.float32)
        index = upload.positions.cpu().numpy()
        active[index] = True
        if upload.values is not None:
            values[index] = upload.values.cpu().numpy()
        parts = []
        for layer in self.space.layers:
            rows = slice(layer.start, layer.stop)
            found, decoded, length = layer_message(layer, active[rows], values[rows])
            parts.append((found + layer.start, decoded, length))
        device = upload.positions.device
        positions, received = (
            torch.from_numpy(np.concatenate([part[place] for part in parts])).to(device) for place in (0, 1)
        )
        return Upload(positions, None if upload.values is None else received), sum(part[2] for part in parts)

    def _send_direction(self, direction: Tensor, expected: int) -> None:
        sent = direction.cpu().numpy()
        layers = [(layer, sent[layer.start : layer.stop]) for layer in self.space.layers]
        messages = [encode_signs(signs, layer.rows) for layer, signs in layers]
        self._check(sum(map(len, messages)), expected, "the direction map")
        for (layer, signs), message in zip(layers, messages, strict=True):
            if not np.array_equal(decode_signs(message, layer.size, layer.rows), signs):
                raise GarbledMessageError("the direction map does not decode to what was sent")

    @staticmethod
    def _check(length: int, expected: int, what: str) -> None:
        if length != expected:
            raise GarbledMessageError(f"{what} takes {length} bytes, the ledger counts {expected}")


def _same(received: Tensor | None, sent: Tensor) -> bool:
    """Bit for bit; values that are not a number are equal too."""
    return received is not None and torch.equal(received.view(torch.int32), sent.contiguous().view(torch.int32))
