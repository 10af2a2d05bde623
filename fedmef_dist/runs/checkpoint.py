"""The whole state of a run on disk: safetensors and JSON, complete or not there at all."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from fedmef_dist.base.atomic import sync_directory
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.base.settings import Settings
from fedmef_dist.cluster.group import Group
from fedmef_dist.runs.checkpoint_files import (
    CHECKPOINTS,
    complete_rounds,
    folder_of,
    read_checkpoint,
    write_checkpoint,
)

_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class CheckpointSettings(Settings):
    """Section ``checkpoint``: how often the state is saved, and in what time when a signal stops the run."""

    every: int = Field(10, ge=1, description="rounds between two checkpoints; the last round is always saved")
    keep: int = Field(2, ge=1, description="how many of the newest checkpoints are kept")
    grace: float = Field(
        20.0,
        ge=0,
        description="seconds from a signal within which the round is finished and saved, or else abandoned; less than "
        "what the batch system grants (30 s after SIGTERM under Slurm and torchrun, --signal=USR2@120 grants 120 s)",
    )


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: tensors on the CPU and a tree of plain values with at least the key ``round``.

    ``where`` names its directory in messages.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    where: str = "checkpoint"


class CheckpointStore:
    """The directory ``checkpoints/`` of a run. Only rank 0 reads and writes it.

    Attributes:
        last: the round whose checkpoint this object has written or found whole; 0 at first.
        kept_round: the round whose checkpoint stays, whatever newer ones come; None: no such.
        make_sure: called before a checkpoint gets its name; raises where the directory is no longer this run's.
    """

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.run_dir = run_dir
        self.directory = run_dir / CHECKPOINTS
        self.keep = keep
        self.last = 0
        self.kept_round: int | None = None
        self.make_sure: Callable[[], None] = lambda: None
        self._failing = False

    @property
    def newest(self) -> Path:
        """The folder of round :attr:`last`."""
        return self._path(self.last)

    def rounds(self) -> list[int]:
        """Rounds with a complete checkpoint, oldest first. Raises UserError where they cannot be read."""
        return complete_rounds(self.run_dir)

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes under a temporary name, syncs, renames, and only then deletes all but the newest ``keep``.

        The one of :attr:`kept_round` stays. Checkpoints of later rounds go too: only damaged ones can be there when a
        run comes to an earlier round.
        Raises OSError where the directory cannot be written; the checkpoints that were there are as they were then.
        """
        from safetensors.torch import save

        final = self._path(checkpoint.state["round"])
        for left_over in self.directory.glob(".round-*.partial"):
            shutil.rmtree(left_over, ignore_errors=True)
        partial = final.with_name(f".{final.name}.partial")
        try:
            write_checkpoint(partial, save(checkpoint.tensors), checkpoint.state)
            self.make_sure()
            self._remove([checkpoint.state["round"]] if final.exists() else [])
            partial.rename(final)
            sync_directory(self.directory)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # what was written may be the space that others need
            raise
        with suppress(UserError):  # they cannot be listed now: the next one tries again
            rounds = self.rounds()
            done = [number for number in rounds if number <= checkpoint.state["round"]]
            self._remove(sorted({*rounds} - {*done[-self.keep :], self.kept_round}))

    def forget_later(self, round_number: int) -> None:
        """Deletes checkpoints of later rounds: a run that begins here has no lines of metrics for them."""
        self._remove(number for number in self.rounds() if number > round_number)

    def _remove(self, rounds: Iterable[int]) -> None:
        """Deletes checkpoints, under other names: half of one must never look like one. What fails is tried again."""
        with suppress(OSError):
            doomed = [
                self._path(number).rename(self.directory / f".{folder_of(number)}.old.partial") for number in rounds
            ]
            if doomed:
                sync_directory(self.directory)
            for path in doomed:
                shutil.rmtree(path, ignore_errors=True)

    def try_save(self, checkpoint: Checkpoint) -> bool:
        """Saves where the disk allows it; where it does not, says so once and keeps the last good checkpoint."""
        try:
            self.save(checkpoint)
        except OSError as error:
            _LOG.warning("round %d: checkpoint not written: %s", checkpoint.state["round"], error)
            if not self._failing:
                tell(f"checkpoints cannot be written: {error.strerror}; the run goes on; where: {self.directory}")
            self._failing = True
            return False
        self._failing, self.last = False, checkpoint.state["round"]
        _LOG.info("round %d: checkpoint written", checkpoint.state["round"])
        return True

    def load(self, round_number: int) -> Checkpoint:
        """Reads one checkpoint.

        Raises:
            UserError: a file is missing or its content is not what was written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(round_number)
        try:
            data, state = read_checkpoint(self.run_dir, round_number)
            return Checkpoint(load(data), state, str(path))
        except MemoryError:
            reason = "it is larger than the memory"
        except OSError as error:
            reason = str(error.strerror)
        except (ValueError, RecursionError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint is broken: {reason}",
            where=str(path),
            mend="delete that directory; the run then goes on from the one before it, or from the start",
        )

    def load_newest(self) -> Checkpoint:
        """The newest checkpoint that is whole; names each broken one on the way.

        Raises:
            UserError: none is whole.
        """
        rounds = self.rounds()
        earlier = [None, *rounds]
        for number, before in zip(reversed(rounds), reversed(earlier[:-1]), strict=True):
            try:
                found = self.load(number)
                self.last = number
                return found
            except UserError as error:
                if before is None:
                    raise
                tell(f"{error.what}; where: {error.where}; the one before it is tried, of round {before}")
        raise UserError("there is no checkpoint", where=str(self.directory), mend="start the run first")

    def _path(self, round_number: int) -> Path:
        return self.directory / folder_of(round_number)


def broadcast(checkpoint: Checkpoint | None, group: Group) -> Checkpoint | None:
    """Rank 0's checkpoint on every rank: all go on from the same one, and only rank 0 needs to see its files."""
    from safetensors.torch import load, save

    if group.world_size == 1:
        return checkpoint
    parts = [b"", b"", b""]
    if checkpoint is not None:
        parts = [save(checkpoint.tensors), json.dumps(checkpoint.state).encode(), checkpoint.where.encode()]
    sizes = torch.tensor([len(part) for part in parts])
    group.broadcast(sizes)
    data, state, where = (_broadcast_bytes(part, int(size), group) for part, size in zip(parts, sizes, strict=True))
    return Checkpoint(load(data), json.loads(state), where.decode()) if state else None


def check_values(checkpoint: Checkpoint, kind: type[T], values: Any, name: str = "") -> T:
    """Plain values of the checkpoint as a model or another type, each of its type and range.

    ``name`` is what messages call them. Raises UserError.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise misfit(checkpoint, explain(error, name)) from None


def explain(error: ValidationError, name: str = "") -> str:
    """The first of the wrong values within ``name``, and why, in one line."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join([*([name] if name else []), *map(str, first['loc'])])}: {first['msg']}"


def misfit(checkpoint: Checkpoint, what: str) -> UserError:
    """The error of a checkpoint that is whole, but not of this run."""
    return UserError(
        f"the checkpoint is not of this run: {what}",
        where=checkpoint.where,
        mend="delete that directory, or choose another --run-dir",
    )


def _broadcast_bytes(content: bytes, size: int, group: Group) -> bytes:
    buffer = torch.zeros(size, dtype=torch.uint8)
    if group.rank == 0:
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else buffer
    if size:
        group.broadcast(buffer)
    return buffer.numpy().tobytes()
