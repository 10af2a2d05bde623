"""In which state a run is, seen from outside: from its files and its owner's record, without disturbing it."""

import os
import re
import shlex
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import read_regular
from fedmef_dist.runs.checkpoint_files import CHECKPOINTS, complete_rounds
from fedmef_dist.runs.directory import CONFIG, is_of_a_start, refuse_missing
from fedmef_dist.runs.owner_record import HEARTBEAT_SECONDS, OWNER, SILENCE_SECONDS, Record, Seen, here, lives, look
from fedmef_dist.runs.summary import SUMMARY, check_numbers, read_summary
from fedmef_dist.runs.verify import configuration, rounds_to_do
from fedmef_dist.tracking.lines import METRICS, parse_line, split

Name = Literal["new", "running", "hung", "stopped", "finished", "damaged", "no run"]
_FILES = (CONFIG, METRICS, SUMMARY, CHECKPOINTS, OWNER)  # a directory with none of them has never been a run's
_TAIL = 1 << 20  # bytes: hundreds of lines
_RECENT = 10
_LATE = 4 * HEARTBEAT_SECONDS  # a heartbeat older than this is looked at twice
# Without a new round for so long, and for so many times a round's usual time, a run makes no progress.
_NO_PROGRESS_SECONDS, _NO_PROGRESS_ROUNDS = 600.0, 20.0


@dataclass(frozen=True)
class RunStatus:
    """What can be told of a run directory.

    ``round`` is the newest one done of ``rounds`` to do (0 where that is not known); ``detail`` says who, since when or
    what, ``mend`` what can be done about it. Seconds; the accuracy from 0 to 1.
    """

    path: Path
    name: Name
    round: int = 0
    rounds: int = 0
    seconds_left: float | None = None
    accuracy: float | None = None
    digest: str | None = None
    detail: str = ""
    mend: str = ""
    owner: Record | None = None


def statuses(run_dirs: Sequence[Path]) -> list[RunStatus]:
    """In which state each of the runs is. Takes some seconds where the heartbeat of another host has to be heard first.

    Raises UserError where one of them is no directory, or cannot be looked at.
    """
    for path in run_dirs:
        refuse_missing(path)
    first = [_look(path) for path in run_dirs]
    if any(_is_doubtful(seen) for seen in first):
        time.sleep(2 * HEARTBEAT_SECONDS)
    return [_status(path, seen) for path, seen in zip(run_dirs, first, strict=True)]


def _look(path: Path) -> Seen | UserError:
    try:
        return look(path)
    except UserError as error:
        return error


def _is_doubtful(seen: Seen | UserError) -> bool:
    record = seen.record if isinstance(seen, Seen) else None
    if record is None or record.state != "running" or _is_fresh(record):
        return False
    return lives(record, here(), False) is None


def _status(path: Path, first: Seen | UserError) -> RunStatus:
    if isinstance(first, UserError):
        return _damaged(path, first)
    try:
        if not (path / CONFIG).exists() and all(is_of_a_start(entry.name) for entry in path.iterdir()):
            return _with_owner(RunStatus(path, "new", detail="nothing is written yet"), first, [])
        if not any(os.path.lexists(path / name) for name in _FILES):
            return _no_run(path)
        rounds = rounds_to_do(path, configuration(path))
        summary, lines = read_summary(path), _newest_lines(path)
        saved = complete_rounds(path)
    except UserError as error:
        return _damaged(path, error)
    done = lines[-1]["round"] if lines else 0
    accuracy, digest = _newest(lines, "eval/accuracy"), _hex(_newest(lines, "model/digest"))
    known = _with_owner(RunStatus(path, "stopped", done, rounds, None, accuracy, digest), first, lines)
    if known.name != "stopped":
        return known
    if summary is not None and (summary["rounds"] >= rounds or _ended_by_callback(summary, done)):
        return _finished(known, summary, done)
    if not lines and not saved and known.owner is None:
        return replace(known, name="new", detail="it has not started", mend=_command(path))
    start = f"goes on from round {saved[-1]}" if saved else "starts again: there is no checkpoint"
    return replace(known, detail=f"{known.detail or 'it has ended early'}; {start}", mend=_command(path))


def _finished(known: RunStatus, summary: dict[str, Any], done: int) -> RunStatus:
    if done != summary["rounds"]:
        what = f"{SUMMARY} is of {summary['rounds']} rounds, {METRICS} ends with round {done}"
        return replace(known, name="damaged", detail=what, mend="leave this run out, or run it again elsewhere")
    detail = f"a callback ended it: {summary['stopped']}" if isinstance(summary.get("stopped"), str) else ""
    return replace(known, name="finished", digest=_hex(summary.get("model/digest")), detail=detail)


def _ended_by_callback(summary: dict[str, Any], done: int) -> bool:
    """Whether the run has ended before its last round, as a callback decided, and has not gone on since."""
    return isinstance(summary.get("stopped"), str) and done == summary["rounds"]


def _with_owner(known: RunStatus, first: Seen, lines: Sequence[dict[str, Any]]) -> RunStatus:
    """What its owner's record adds: whether somebody runs it, and whether he gets on."""
    try:
        seen = look(known.path)
    except UserError as error:
        return _damaged(known.path, error)
    record = seen.record
    if record is None:
        return known
    known = replace(known, owner=record, round=max(known.round, record.round))
    if record.state != "running":
        return known
    alive = lives(record, here(), False)
    silent = f"{record}, no heartbeat for {record.age:.0f} s"
    if alive is False:
        return replace(known, detail=f"its process is gone: {silent}")
    if _is_fresh(record) or seen.mark != first.mark:
        return _running(known, record, lines)
    if alive is None and record.age >= SILENCE_SECONDS:
        return replace(known, detail=f"its host is silent: {silent}")
    return replace(known, name="hung", detail=silent, mend="look at that process; once it has ended, start again")


def _is_fresh(record: Record) -> bool:
    return abs(time.time() - record.heartbeat) <= _LATE


def _running(known: RunStatus, record: Record, lines: Sequence[dict[str, Any]]) -> RunStatus:
    recent = [line["time/round"] for line in lines[-_RECENT:] if line.get("time/round") is not None]
    usual = statistics.median(recent) if recent else None
    rounds = known.rounds or record.rounds
    left = usual * max(0, rounds - known.round) if usual is not None else None
    still = record.heartbeat - record.progress
    if usual is not None and still > max(_NO_PROGRESS_SECONDS, _NO_PROGRESS_ROUNDS * usual):
        detail = f"{record}, no round for {still:.0f} s; one took {usual:.1f} s"
        return replace(known, name="hung", rounds=rounds, detail=detail, mend="see its logs; stop it and start again")
    return replace(known, name="running", rounds=rounds, seconds_left=left, detail=f"{record}, {record.age:.0f} s ago")


def _newest_lines(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of the metrics. Raises UserError where one of them is none of metrics."""
    try:
        data = read_regular(path, METRICS, _TAIL, tail=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{METRICS} cannot be read: {error.strerror}", where=str(path)) from None
    lines, _ = split(data)
    rounds = []
    for line in lines[1:] if len(data) == _TAIL else lines:
        try:
            rounds.append(parse_line(line))
            check_numbers(rounds[-1])
        except ValueError as error:
            what = f"a line of {METRICS} is none of metrics: {error}"
            raise UserError(what, where=str(path), mend="see which with --verify") from None
    return rounds


def _newest(lines: Sequence[dict[str, Any]], key: str) -> Any:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)


def _hex(value: Any) -> str | None:
    return value if isinstance(value, str) and re.fullmatch("[0-9a-f]{1,128}", value) else None


def _damaged(path: Path, error: UserError) -> RunStatus:
    return RunStatus(path, "damaged", detail=error.what, mend=error.mend)


def _no_run(path: Path) -> RunStatus:
    """Such as the folder of a sweep, or of what another command has written beside the runs."""
    inside = next(path.glob(f"*/{CONFIG}"), None)
    return RunStatus(path, "no run", detail=f"the runs in it: {path}/*" if inside else "no file in it is a run's")


def _command(path: Path) -> str:
    return shlex.join(["fedmef-dist", "run", str(path / CONFIG), "--run-dir", str(path)])
