"""When each rank did what: ``timeline/rank-NNN.json`` in the run directory, a trace that Perfetto opens.

The format is Chrome's JSON array, one event a line. It needs no closing bracket, so the trace of a run that is killed,
or goes on later in the same file, is one too.
"""

import errno
import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmef_dist.base.notices import tell
from fedmef_dist.base.regular import own_file, read_regular

PHASES = ("train", "wait", "reduce", "adjust", "eval")
_MICROSECONDS = 1e6
_KIBIBYTE = 1024
_LARGEST = 1 << 30


class Phases:
    """The spans of one round by name, one behind the other, between readings of ``time.perf_counter``."""

    def __init__(self) -> None:
        self.start = self._end = time.perf_counter()
        self.spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """The body is the phase of this name; it begins where the one before it ended."""
        yield
        start, self._end = self._end, time.perf_counter()
        self.spans[name] = (start, self._end)

    def split(self, name: str, first: str, seconds: float) -> None:
        """The first part of a phase, so many seconds but no more than it took, is another one."""
        start, end = self.spans.pop(name)
        border = min(start + seconds, end)
        self.spans |= {first: (start, border), name: (border, end)}

    @property
    def seconds(self) -> float:
        """From the start to the end of the last phase."""
        return self._end - self.start


class Timeline:
    """The spans of one rank; nothing is kept without a run directory.

    A trace never ends a run: where it cannot be written, one line on stderr says so and the run goes on without it.
    """

    def __init__(self, run_dir: Path | None, rank: int) -> None:
        self.path = None if run_dir is None else run_dir / "timeline" / f"rank-{rank:03d}.json"
        self._rank = rank
        # The ranks' own clocks start anywhere; their traces meet on the wall clock.
        self._epoch = time.time() - time.perf_counter()
        self._events = [self._event("process_name", "M", args={"name": f"rank {rank} on {socket.gethostname()}"})]

    def add(self, name: str, start: float, end: float, *, row: int = 0, **details: float) -> None:
        """One span between two readings of ``time.perf_counter``, in seconds; those of one row do not overlap."""
        if self.path is not None:
            place = {"ts": round((self._epoch + start) * _MICROSECONDS), "dur": round((end - start) * _MICROSECONDS)}
            self._events.append(self._event(name, "X", tid=row, **place, args=details))

    def phases(self, round: int, phases: Phases) -> dict[str, float]:
        """Notes the spans of a round's phases; returns their seconds as metrics."""
        for name, (start, end) in phases.spans.items():
            self.add(name, start, end, round=round)
        self._write()
        return {f"time/{name}": end - start for name, (start, end) in phases.spans.items()}

    def _event(self, name: str, kind: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "ph": kind, "pid": self._rank, "tid": 0} | fields

    def _write(self) -> None:
        """Appends what has happened since, and the most memory that the process has held until now, in bytes."""
        if self.path is None:
            return
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE
        now = round(time.time() * _MICROSECONDS)
        self._events.append(self._event("peak memory", "C", ts=now, args={"bytes": peak}))
        lines = "".join(f"{json.dumps(event)},\n" for event in self._events)
        self._events.clear()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0, opener=own_file) as file:
                size = file.tell()
                data = (lines if size else f"[\n{lines}").encode()
                if file.write(data) < len(data):
                    file.truncate(size)  # half a line would spoil what a later start appends
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            tell(f"the timeline cannot be written: {error.strerror}; the run goes on; where: {self.path}")
            self.path = None


def read_timelines(run_dir: Path) -> list[dict[str, Any]]:
    """All events of all ranks of a run. Raises OSError where a file cannot be read, ValueError where it is damaged."""
    folder = run_dir / "timeline"
    names = sorted(path.name for path in folder.glob("rank-*.json"))
    texts = [read_regular(folder, name, _LARGEST).decode().rstrip().rstrip(",") for name in names]
    return [event for text in texts for event in json.loads(f"{text}]")]
