"""metrics.jsonl: one JSON object a round, the truth that W&B and the reports are made from."""

import json
import math
import os
from pathlib import Path

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.tracker import Metrics, Tracker


class JsonlTracker(Tracker):
    """Appends one line a round, on disk before the next round starts.

    A fresh run (``resume_round`` None) starts an empty file. A run resumed after round r keeps the lines of rounds
    up to r and drops what was written after the checkpoint, so that the file becomes that of an undisturbed run.

    A full disk is said once and stops nothing: what could not be written is tried again with every later round.
    """

    def __init__(self, path: Path, resume_round: int | None) -> None:
        kept = "" if resume_round is None else lines_until(path, resume_round)
        write_text(path, kept)
        self._path = path
        self._file = path.open("r+b", buffering=0)
        self._size = self._file.seek(0, os.SEEK_END)
        self._waiting = b""
        self._failing = False

    def log(self, metrics: Metrics) -> None:
        """Write the round's line and wait until the disk has it; NaN and infinity become null."""
        finite = {key: None if _not_finite(value) else value for key, value in metrics.items()}
        self._waiting += json.dumps(finite, allow_nan=False).encode() + b"\n"
        try:
            self._write_waiting()
        except OSError as error:
            if not self._failing:
                tell(f"{self._path} cannot be written: {error.strerror}; the run goes on and tries again")
            self._failing = True

    def _write_waiting(self) -> None:
        # Half a line of an attempt that failed must not stay in front of the next.
        self._file.truncate(self._size)
        self._file.seek(self._size)
        rest = memoryview(self._waiting)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
        self._size += len(self._waiting)
        self._waiting = b""
        self._failing = False

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _not_finite(value: float | int | str) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def lines_until(path: Path, last_round: int) -> str:
    """The file's lines up to a round; empty without a file. Raises UserError where a line is damaged."""
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, start=1):
        # A process killed while it wrote leaves a last line without its end.
        if number == len(lines) and not line.endswith("\n"):
            break
        if _round_of(path, number, line) <= last_round:
            kept.append(line)
    return "".join(kept)


def _round_of(path: Path, number: int, line: str) -> int:
    try:
        return int(json.loads(line)["round"])
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            "this is not a line of metrics",
            where=f"{path}, line {number}",
            mend="remove the line, or start over with another --run-dir",
        ) from error
