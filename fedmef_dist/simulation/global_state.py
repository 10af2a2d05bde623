"""The global model and its mask: what clients are sent, what a checkpoint holds, what the digest is of."""

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedmef_dist.sparsity import Mask, ParameterSpace

_LARGEST_VERSION = 2**31 - 1  # the ledger notes which one each client knows as an int32


class GlobalState:
    """Weights, running statistics and mask between two rounds.

    Attributes:
        space: the parameter space; its mask is the current one.
        values: float32 (total,), the global weights and running statistics.
        first_mask: the mask of the first round.
    """

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space
        self.values = space.values.clone()
        self.first_mask = space.mask

    def start(self, values: Tensor, active: Tensor) -> None:
        """Takes the first state (float32 (total,)) and mask (bool (n_prunable,)): weights outside it become 0."""
        self.set_state(values, Mask(active))
        self.first_mask = self.space.mask

    def set_state(self, values: Tensor, mask: Mask) -> None:
        """Takes over a state (float32 (total,)) and its mask."""
        self.space.load(values)
        self.space.set_mask(mask)
        self.values = self.space.values.clone()

    def digest(self) -> str:
        """SHA-256, hexadecimal, over the global weights, running statistics and mask."""
        digest = hashlib.sha256(self.values.cpu().numpy().tobytes())
        digest.update(self.space.mask.digest)
        return digest.hexdigest()


class MaskPart:
    """The masks of a run, as a part of a run's snapshot; restored before :class:`ModelPart`."""

    def __init__(self, state: GlobalState) -> None:
        self._state = state

    def state(self) -> dict[str, Any]:
        """``active`` and ``first``, uint8 bits of the current and of the first mask, and the current version."""
        space = self._state.space
        return {
            "active": space.mask.to_bits(),
            "first": self._state.first_mask.to_bits(),
            "version": space.mask.version,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Makes the mask that of the space. Raises ValueError where the version is none."""
        space = self._state.space
        if not 0 <= state["version"] <= _LARGEST_VERSION:
            raise ValueError(f"version: not between 0 and {_LARGEST_VERSION}")
        device = space.values.device
        space.set_mask(Mask.from_bits(state["active"], space.n_prunable, state["version"], device))
        self._state.first_mask = Mask.from_bits(state["first"], space.n_prunable, 0, device)


class ModelPart:
    """The global model of a run, as a part of a run's snapshot: inactive weights take no room."""

    def __init__(self, state: GlobalState) -> None:
        self._state = state

    def state(self) -> dict[str, Any]:
        """``values``, float32 (packed_size,), and the digest of state and mask."""
        return {"values": self._state.space.pack(self._state.values), "digest": self._state.digest()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes the state. Raises ValueError where state and mask have another digest than it says."""
        current = self._state
        values = current.space.unpack(state["values"].to(current.space.values.device))
        current.set_state(values, current.space.mask)
        if current.digest() != state["digest"]:
            raise ValueError("weights and mask have another digest than it says")
