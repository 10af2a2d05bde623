"""The messages between server and simulated clients, encoded to bytes and decoded again.

What the server adds up is what it decoded. As fp32 that is what the clients sent, bit for bit.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.sparsity import Mask
from fedmef_dist.wire.encodings import Encoding, WithMask
from fedmef_dist.wire.layer_encoding import FP32, LARGEST_INT8, Number, decode_values, encode_values
from fedmef_dist.wire.ledger import WireLedger
from fedmef_dist.wire.proofs import Proofs, same_bits
from fedmef_dist.wire.ranges import Block, Range, prunable
from fedmef_dist.wire.traffic import Broadcast, Collection, Upload


class GarbledMessageError(RuntimeError):
    """A message is not as long as the ledger says, or decodes to something else: a fault of this program."""


class Messages:
    """Encodes and decodes what travels, and holds it against the ledger.

    Args:
        ledger: what the lengths should be, and in which type values go up.
    """

    def __init__(self, ledger: WireLedger) -> None:
        self.ledger, self.space = ledger, ledger.space
        self._proofs = Proofs()

    def send_model(self, values: Tensor, mask: Mask, mask_update: Encoding | None = None) -> None:
        """The state (float32 (total,)) on its way down, with its mask; everybody knows the full one.

        Args:
            values: the state.
            mask: its mask.
            mask_update: how both travel to a client that knows an earlier mask, if in another way.

        On a device a thread proves that: see :meth:`settle`.

        Raises:
            GarbledMessageError: it is not as long as the ledger counts, or does not decode to what was sent.
        """
        for encoding in () if mask.is_full else (WithMask(), *([] if mask_update is None else [mask_update])):
            weights = values[mask.index]
            expected = self.ledger.weights_with_mask_bytes(mask, FP32, encoding)
            prove = partial(self._prove_model, encoding, expected)
            if values.device.type == "cpu":
                prove(mask.active.numpy(), weights.numpy())
            else:
                self._proofs.later(prove, mask.active, weights)

    def _prove_model(self, encoding: Encoding, expected: int, active: np.ndarray, weights: np.ndarray) -> None:
        sent = Upload(torch.from_numpy(np.flatnonzero(active)), torch.from_numpy(weights))
        received, length = self._send(sent, prunable(self.space), encoding, lambda block: FP32)
        self._check(length, expected, "a model's weights")
        if not torch.equal(_positions(received), _positions(sent)) or not _same(received.values, sent.values):
            raise GarbledMessageError("the model does not decode to what was sent")

    def return_model(self, values: Tensor, mask: Mask) -> Tensor:
        """A client's whole state (float32 (total,)) on its way up, with a mask of its own; as the server decodes it.

        Raises:
            GarbledMessageError: as :meth:`send_model`.
        """
        received = torch.zeros_like(values)
        received[: self.space.n_prunable] = self._returned_with_mask(values, mask)
        received[self.space.n_prunable :] = values[self.space.n_prunable :]
        return received

    def broadcast(self, sent: Broadcast) -> Tensor:
        """What a client decodes of a broadcast: float32 (over.size,), 0 where nothing is named, 1 at bare positions.

        Raises:
            GarbledMessageError: it is not as long as the ledger counts.
        """
        values = sent.values.float()
        named = values.nonzero().flatten() if sent.encoding.names_positions else None
        upload = Upload(named, values if named is None else values[named] if sent.encoding.has_values else None)
        received, length = self._send(upload, sent.over, sent.encoding, lambda block: FP32)
        self._check(length, self.ledger.broadcast_bytes(sent), f"the broadcast {sent.name}")
        return _spread(received, sent.over.size, values)

    def return_state(self, packed: Tensor, *, returns_weights: bool) -> Tensor:
        """A client's packed state as the server decodes it.

        On a device it is what decoding would give, and a thread proves that it is: see :meth:`settle`.

        Args:
            packed: float32, the active prunable weights unless they come as a collection, then everything else.
            returns_weights: whether they do not.

        Raises:
            GarbledMessageError: it is not as long as the ledger counts.
        """
        if not returns_weights:
            self._check(packed.nbytes, self.ledger.uplink_bytes(self.space.mask, (), False), "a client's state")
            return packed
        count = self.space.mask.count
        weights, tail = packed[:count], packed[count:]
        expected = self.ledger.uplink_bytes(self.space.mask) - tail.nbytes
        if packed.device.type == "cpu":
            return torch.cat([self._returned(weights, expected), tail])
        counts, number = self.space.layer_counts(), self.ledger.settings.uplink
        decoded = weights if number == FP32 else as_decoded(weights, counts, number)

        def prove(sent: np.ndarray, received: np.ndarray) -> None:
            if not same_bits(self._returned(torch.from_numpy(sent), expected).numpy(), received):
                raise GarbledMessageError("a client's state does not decode to what is added up")

        self._proofs.later(prove, weights, decoded)
        return packed if decoded is weights else torch.cat([decoded, tail])

    def settle(self) -> None:
        """Waits until every model that has been sent and every state that has been returned is proved.

        Raises:
            GarbledMessageError: one is not as long as the ledger counts, or does not decode to what is added up.
        """
        self._proofs.settle()

    def _returned(self, weights: Tensor, expected: int) -> Tensor:
        """Active weights on the host as they are decoded; their message has to be so long."""
        received, length = self._at_known_positions(weights, self.ledger.settings.uplink)
        self._check(length, expected, "a client's state")
        return received

    def collect(self, upload: Upload, wanted: Collection) -> Upload:
        """A client's contribution to a collection as the server decodes it.

        Raises:
            GarbledMessageError: it is not as long as the ledger counts.
        """
        if not wanted.travels:
            return upload
        received, length = self._send(upload, wanted.over, wanted.encoding, self.ledger.number)
        counts = upload.counts(wanted.over) if wanted.varies else None
        self._check(length, self.ledger.collection_bytes(wanted, counts), f"a client's {wanted.name}")
        return received

    def _returned_with_mask(self, values: Tensor, mask: Mask) -> Tensor:
        """A client's prunable weights with their mask; returns what is decoded, float32 (n_prunable,)."""
        sent, number = Upload(mask.index, values[mask.index]), self.ledger.settings.uplink
        received, length = self._send(sent, prunable(self.space), WithMask(), lambda block: number)
        self._check(length, self.ledger.weights_with_mask_bytes(mask, number), "a model's weights")
        same = number != FP32 or _same(received.values, sent.values)
        if not torch.equal(_positions(received), mask.index) or not same:
            raise GarbledMessageError("the model does not decode to what was sent")
        return _spread(received, self.space.n_prunable, values)

    def _at_known_positions(self, values: Tensor, number: Number) -> tuple[Tensor, int]:
        """Active values (float32 (count,), on the host) whose positions the receiver knows, and their bytes.

        Every client sends its state so: no positions are looked up, the packed values are parted by the layers' counts.
        """
        parts, length, start = [], 0, 0
        for count in self.space.layer_counts():
            message = encode_values(values[start : start + count].numpy(), number)
            parts.append(torch.from_numpy(decode_values(message, number)))
            length, start = length + len(message), start + count
        return torch.cat(parts) if parts else values[:0], length

    def _send(
        self, upload: Upload, over: Range, encoding: Encoding, number: Callable[[Block], Number]
    ) -> tuple[Upload, int]:
        """Encodes and decodes every block; what was decoded, and the bytes of all."""
        active, values = _dense(upload, over.size)
        parts, length = [], 0
        for block in over.blocks:
            rows = slice(block.start, block.stop)
            message = encoding.encode(block, active[rows], values[rows], number(block))
            found, decoded = encoding.decode(message, block, number(block))
            parts.append((found + block.start, decoded))
            length += len(message)
        return _joined(parts, upload, over.size), length

    @staticmethod
    def _check(length: int, expected: int, what: str) -> None:
        if length != expected:
            raise GarbledMessageError(f"{what} takes {length} bytes, the ledger counts {expected}")


def as_decoded(values: Tensor, counts: Sequence[int], number: Number) -> Tensor:
    """What decoding the layers' messages gives, computed on the values' own device to the same bits.

    Args:
        values: float32 (sum of counts,).
        counts: of each layer.
        number: the type in which they travel, see :func:`encode_values`.
    """
    if not number.scaled:
        return values.half().float()
    layers = []
    for layer in values.split(list(counts)):
        if not layer.numel():
            continue
        largest = layer.abs().amax().double()
        largest = torch.where(largest.isfinite(), largest, torch.nan)
        steps = torch.where(largest == 0, 0.0, (layer.double() * LARGEST_INT8 / largest).round())
        layers.append((steps * largest / LARGEST_INT8 + 0.0).float())  # an integer has no negative zero
    return torch.cat(layers) if layers else values


def _dense(upload: Upload, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``size`` positions are named, bool, and their values, float32."""
    if upload.positions is None:
        assert upload.values is not None
        return np.ones(size, np.bool_), upload.values.cpu().numpy()
    active, values = np.zeros(size, np.bool_), np.zeros(size, np.float32)
    index = upload.positions.cpu().numpy()
    active[index] = True
    if upload.values is not None:
        values[index] = upload.values.cpu().numpy()
    return active, values


def _joined(parts: list[tuple[np.ndarray, np.ndarray]], sent: Upload, size: int) -> Upload:
    """One upload of all blocks, on the device of what was sent; all positions are None where they were."""
    nothing = np.empty(0, np.int64), np.empty(0, np.float32)  # of a range without blocks
    positions, values = (np.concatenate([part[place] for part in (nothing, *parts)]) for place in (0, 1))
    like = sent.values if sent.values is not None else sent.positions
    assert like is not None
    received = None if sent.values is None else torch.from_numpy(values).to(like.device)
    if sent.positions is None and len(positions) == size:
        return Upload(None, received)
    return Upload(torch.from_numpy(positions).to(like.device), received)


def _positions(upload: Upload) -> Tensor:
    assert upload.positions is not None
    return upload.positions


def _spread(upload: Upload, size: int, like: Tensor) -> Tensor:
    """The values at their positions, or 1 where positions alone travel, float32 (size,); 0 elsewhere."""
    if upload.positions is None:
        assert upload.values is not None
        return upload.values
    spread = torch.zeros(size, device=like.device)
    spread[upload.positions] = 1.0 if upload.values is None else upload.values
    return spread


def _same(received: Tensor | None, sent: Tensor | None) -> bool:
    """Bit for bit; values that are not a number are equal too."""
    if received is None or sent is None:
        return received is sent
    return torch.equal(received.view(torch.int32), sent.contiguous().view(torch.int32))
