"""The timelines of a run's ranks, read back for the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmef_dist.base.regular import read_regular

_TAIL = 1 << 19  # bytes of a rank's file: its last thousands of spans
_MOST_RANKS = 64
_MICROSECONDS = 1e6


@dataclass(frozen=True)
class Span:
    """What a rank did in a round, from ``start`` on, both in seconds; only differences of starts mean something."""

    rank: int
    name: str
    round: int
    start: float
    seconds: float


class _Details(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    round: int = Field(ge=0, lt=2**62)


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    name: str = Field(max_length=100)
    ph: str = Field(max_length=1)
    pid: int = Field(ge=0, lt=2**31)
    ts: int = Field(ge=0, lt=2**62)
    dur: int = Field(ge=0, lt=2**62)
    args: _Details


def read_spans(run_dir: Path) -> Sequence[Span]:
    """The newest spans of the first ranks, in the order of their start.

    A timeline vouches for nothing: files that cannot be read, and lines that are no span of a round, are left out.
    """
    spans: list[Span] = []
    for rank in range(_MOST_RANKS):
        try:
            data = read_regular(run_dir, f"timeline/rank-{rank:03d}.json", _TAIL, tail=True)
        except OSError:
            break
        spans += [span for line in data.split(b"\n") if (span := _span(rank, line.strip().rstrip(b","))) is not None]
    return sorted(spans, key=lambda span: span.start)


def _span(rank: int, line: bytes) -> Span | None:
    try:
        event = _Event.model_validate_json(line)
    except ValidationError:  # the array's bracket, a counter, a line cut off at the tail
        return None
    if event.ph != "X" or event.pid != rank:
        return None
    return Span(rank, event.name, event.args.round, event.ts / _MICROSECONDS, event.dur / _MICROSECONDS)
