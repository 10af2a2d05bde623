"""metrics.jsonl: one JSON object a round, the truth that W&B and the reports are made from."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.base.atomic import write_bytes
from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.lines import LARGEST_NUMBER, Head, head_of, lines_until, read_lines, rounds_text
from fedmef_dist.tracking.tracker import Metrics, Tracker


class JsonlTracker(Tracker):
    """Appends one line a round, on disk before the next round starts.

    A fresh run (``resume_round`` None) starts an empty file. A run resumed after round r keeps the lines of rounds
    up to r, checked against ``state``, and drops what was written after the checkpoint, so that the file becomes that
    of an undisturbed run.

    A full disk is said once and stops nothing: what could not be written is kept, in checkpoints too, and tried again
    with every later round. A file that somebody else has removed, replaced or written into ends the run.

    Raises UserError where the file is not what the checkpoint knows, or cannot be written at all.
    """

    def __init__(self, path: Path, resume_round: int | None, state: Mapping[str, str] | None = None) -> None:
        kept = b"".join([] if resume_round is None else lines_until(path, resume_round, state or {}))
        try:
            write_bytes(path, kept)
            self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise UserError(
                f"{path.name} cannot be written: {error.strerror}",
                where=str(path),
                mend="make room or choose --run-dir",
            ) from None
        self._path = path
        self._sum = hashlib.sha256(kept)
        self._lines = resume_round or 0
        self._size = len(kept)
        self._waiting: list[bytes] = []
        self._failing = self._told = False

    def log(self, metrics: Metrics) -> None:
        """Write the round's line and wait until the disk has it; NaN, infinity and what is beyond 1e60 become null.

        Raises FilesLostError where the file is not the one that was written so far.
        """
        # What no reader takes would leave a file that no run goes on from.
        readable = {key: None if _is_beyond(value) else value for key, value in metrics.items()}
        line = json.dumps(readable, allow_nan=False).encode() + b"\n"
        self._sum.update(line)
        self._lines += 1
        self._waiting.append(line)
        self._check_place()
        try:
            self._write_waiting()
        except OSError as error:
            if not self._failing:
                tell(f"{self._path} cannot be written: {error.strerror}; the run goes on and tries again")
            self._failing = True

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Make sure that the file holds every round as it was logged.

        Raises UserError where the disk still does not take the last lines, FilesLostError where the file is another.
        """
        self._check_place()
        try:
            self._write_waiting()
        except OSError as error:
            self._told = True
            raise UserError(
                f"all rounds are done, but {self._missing()} missing in {self._path.name}: {error.strerror}",
                where=str(self._path),
                mend="make room there and start again: the run goes on from its last checkpoint",
            ) from None
        lines, rest = read_lines(self._path.parent)
        if rest or head_of(lines) != self._head():
            raise FilesLostError(f"{self._path} does not hold what this run has written into it")

    def close(self) -> None:
        """Close the file, and say which rounds it lacks."""
        if self._waiting and not self._told:
            tell(f"{self._missing()} missing in {self._path}; checkpoints have them, and the next start writes them")
        os.close(self._handle)

    def state(self) -> dict[str, str]:
        """The head of all lines so far, and those that the disk has not taken."""
        return self._head().state(b"".join(self._waiting))

    def _head(self) -> Head:
        return Head(self._lines, self._sum.hexdigest())

    def _missing(self) -> str:
        return rounds_text(self._lines - len(self._waiting) + 1, self._lines)

    def _check_place(self) -> None:
        """The name must still lead to the open file, and the file must be as long as it was left."""
        try:
            there, own = self._path.lstat(), os.fstat(self._handle)
        except OSError as error:
            raise FilesLostError(f"{self._path} was removed while the run was writing it: {error.strerror}") from None
        if (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            raise FilesLostError(f"{self._path} was replaced while the run was writing it")
        if own.st_size < self._size or (own.st_size > self._size and not self._failing):
            raise FilesLostError(f"{self._path} was changed by somebody else while the run was writing it")

    def _write_waiting(self) -> None:
        # Half a line of an attempt that failed must not stay in front of the next.
        os.ftruncate(self._handle, self._size)
        data = b"".join(self._waiting)
        done = 0
        while done < len(data):
            done += os.pwrite(self._handle, data[done:], self._size + done)
        os.fsync(self._handle)
        self._size += len(data)
        self._waiting = []
        self._failing = False


def _is_beyond(value: float | int | str) -> bool:
    return isinstance(value, float) and not abs(value) <= LARGEST_NUMBER
