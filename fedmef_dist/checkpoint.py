"""The whole state of a run on disk: safetensors and JSON, complete or not there at all."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from fedmef_dist.atomic import sync_directory, write_json
from fedmef_dist.errors import UserError
from fedmef_dist.settings import Settings

_TENSORS, _STATE = "state.safetensors", "state.json"


class CheckpointSettings(Settings):
    """Section ``checkpoint``: how often the state is saved."""

    every: int = Field(10, ge=1, description="rounds between two checkpoints; the last round is always saved")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: tensors on the CPU and a tree of plain values with at least the key ``round``."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The directory ``checkpoints/`` of a run. Only rank 0 writes; any rank reads."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def rounds(self) -> list[int]:
        """Rounds with a complete checkpoint, oldest first."""
        if not self.directory.is_dir():
            return []
        names = (path.name.removeprefix("round-") for path in self.directory.glob("round-*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes under a temporary name, syncs, renames, and only then deletes all but the newest ``keep``."""
        from safetensors.torch import save

        final = self._path(checkpoint.state["round"])
        partial = final.with_name(f".{final.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        data = save(checkpoint.tensors)
        with (partial / _TENSORS).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        write_json(partial / _STATE, {**checkpoint.state, "sha256": _digest(data, checkpoint.state)})
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_directory(self.directory)
        for round_number in self.rounds()[: -self.keep]:
            shutil.rmtree(self._path(round_number))

    def load(self, round_number: int) -> Checkpoint:
        """Reads one checkpoint.

        Raises:
            UserError: a file is missing or its content is not what was written.
        """
        from safetensors.torch import load

        path = self._path(round_number)
        try:
            data = (path / _TENSORS).read_bytes()
            state = json.loads((path / _STATE).read_bytes())
            if not isinstance(state, dict) or state.pop("sha256", None) != _digest(data, state):
                raise ValueError("its content is not what was written")
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"the checkpoint is broken: {' '.join(str(error).split())[:200]}\nwhere: {path}\n"
                "mend: delete that directory; the run then goes on from the one before it, or from the start"
            ) from None
        return Checkpoint(load(data), state)

    def _path(self, round_number: int) -> Path:
        return self.directory / f"round-{round_number:06d}"


def _digest(data: bytes, state: dict[str, Any]) -> str:
    """SHA-256, hexadecimal, over both files' content."""
    digest = hashlib.sha256(data)
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
