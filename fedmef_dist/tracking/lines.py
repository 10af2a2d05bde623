"""metrics.jsonl as lines: rounds 1, 2, ... exactly once, and the SHA-256 that stands for them.

The digest is that of the file's bytes: ``sha256sum metrics.jsonl`` shows it for a whole file, and ``head -n 10
metrics.jsonl | sha256sum`` what the checkpoint of round 10 holds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import read_regular

METRICS = "metrics.jsonl"
LARGEST = 1 << 32  # bytes; a round's line has one or two thousand
LARGEST_NUMBER = 1e60  # beyond that nothing was measured
_LINES, _DIGEST, _WAITING = "metrics/lines", "metrics/digest", "metrics/waiting"
_MEND = "put the file back as it was written, or start over with another --run-dir"

_Number = Annotated[int, Field(ge=-(2**63), le=2**63)] | Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
_LINE = TypeAdapter(dict[str, _Number | bool | str | None])


@dataclass(frozen=True)
class Head:
    """How many lines there are, and the SHA-256 of their bytes, hexadecimal."""

    lines: int
    digest: str

    def summary(self) -> dict[str, Any]:
        """The keys of summary.json."""
        return {_LINES: self.lines, _DIGEST: self.digest}

    def state(self, waiting: bytes) -> dict[str, str]:
        """What a checkpoint keeps; ``waiting`` are the last lines, those that the disk has not taken yet."""
        state = {_LINES: str(self.lines), _DIGEST: self.digest}
        return state | {_WAITING: waiting.decode()} if waiting else state


def head_of(lines: Sequence[bytes]) -> Head:
    """The head behind the last of these lines."""
    return Head(len(lines), hashlib.sha256(b"".join(lines)).hexdigest())


def head_in(state: Mapping[str, Any]) -> Head | None:
    """The head in a checkpoint's tracker state or in a summary; None in one of a version that kept none."""
    lines, digest = str(state.get(_LINES)), state.get(_DIGEST)
    return Head(int(lines), digest) if lines.isdecimal() and len(lines) < 19 and isinstance(digest, str) else None


def split(data: bytes) -> tuple[list[bytes], bytes]:
    """The lines that have their end, and the beginning of one that a killed process has not finished."""
    *lines, rest = data.split(b"\n")
    return [line + b"\n" for line in lines], rest


def read_lines(run_dir: Path) -> tuple[list[bytes], bytes]:
    """The lines of a run's metrics, see :func:`split`; none without a file. Raises UserError where it is unreadable."""
    try:
        return split(read_regular(run_dir, METRICS, LARGEST))
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise UserError(f"{METRICS} cannot be read: {error.strerror}", where=str(run_dir), mend=_MEND) from None


def parse_line(line: bytes) -> dict[str, Any]:
    """The metrics of one line: numbers that are finite, texts, null. Raises ValueError where it is something else."""
    try:
        metrics = _LINE.validate_json(line, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = repr(problem["loc"][0])[:60] if problem["loc"] else ""
        raise ValueError(f"{key} is neither a finite number nor a text" if key else problem["msg"]) from None
    if type(metrics.get("round")) is not int:
        raise ValueError("it has no round")
    return metrics


def parse_rounds(lines: Sequence[bytes], where: Path) -> list[dict[str, Any]]:
    """The metrics of rounds 1, 2, ..., one a line. Raises UserError with the first line that is out of place."""
    rounds = []
    for number, line in enumerate(lines, start=1):
        try:
            metrics = parse_line(line)
        except ValueError as error:
            raise _gap(f"this is not a line of metrics: {error}", where, number) from None
        found = metrics["round"]
        if found > number:
            raise _gap(f"{rounds_text(number, found - 1)} missing before it", where, number)
        if found < number:
            what = f"round {found} stands twice" if found > 0 else f"there is no round {found}"
            raise _gap(what, where, number)
        rounds.append(metrics)
    return rounds


def check_head(lines: Sequence[bytes], head: Head, where: Path, holder: str) -> None:
    """Makes sure that the lines begin with those of ``head``, which ``holder`` has. Raises UserError with the gap."""
    if len(lines) < head.lines:
        raise UserError(
            f"{rounds_text(len(lines) + 1, head.lines)} missing: {holder} knows {head.lines}",
            where=f"{where}, after line {len(lines)}",
            mend=_MEND,
        )
    if head_of(lines[: head.lines]) != head:
        raise UserError(
            f"lines were changed after they were written: they do not have the SHA-256 that {holder} holds",
            where=f"{where}, lines 1 to {head.lines}",
            mend=_MEND,
        )


def lines_until(path: Path, last_round: int, state: Mapping[str, str]) -> list[bytes]:
    """The lines of rounds 1 to ``last_round`` in the file ``path``; see :func:`kept_lines`."""
    return kept_lines(read_lines(path.parent)[0], path, last_round, state)


def kept_lines(lines: Sequence[bytes], path: Path, last_round: int, state: Mapping[str, str]) -> list[bytes]:
    """Those of the file's lines that are of rounds 1 to ``last_round``, as the checkpoint of that round knows them.

    Those that the disk had not taken by then come from the checkpoint, whose tracker state ``state`` is.

    Raises:
        UserError: a line is torn, foreign, changed, missing or stands twice; its number is in it.
    """
    kept = list(lines[:last_round])
    waiting, _ = split(state.get(_WAITING, "").encode())
    written = last_round - len(waiting)
    if written <= len(kept) < last_round:
        kept += waiting[len(kept) - written :]
    parse_rounds(kept, path)
    check_head(kept, head_in(state) or Head(last_round, head_of(kept).digest), path, "the checkpoint")
    return kept


def rounds_text(first: int, last: int) -> str:
    """The rounds as the subject of a sentence: "round 3 is", "rounds 3 to 5 are"."""
    return f"round {first} is" if first == last else f"rounds {first} to {last} are"


def _gap(what: str, where: Path, number: int) -> UserError:
    return UserError(what, where=f"{where}, line {number}", mend=_MEND)
