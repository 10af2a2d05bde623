"""owner.json: who writes into a run directory, how far the run is, and whether that process still lives."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import open_regular

OWNER = "owner.json"
HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 60.0  # a process on another host that has not been heard for so long is dead
_LARGEST = 1 << 16
_Count = Annotated[int, Field(ge=0, le=2**62)]

Verdict = Literal["free", "dead", "alive", "unknown"]


class ProcessIdentity(BaseModel):
    """One process: where it runs, and what tells it from a later one with the same number."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    host: str = Field(pattern=r"^[!-~]{1,255}$")
    boot: str | None = Field(None, pattern=r"^[0-9a-f-]{1,64}$", description="id of the host's boot")
    pid_namespace: str | None = Field(None, pattern=r"^[!-~]{1,64}$")
    pid: int = Field(ge=1, lt=2**31)
    started: _Count | None = Field(None, description="start of the process, clock ticks after the boot")
    job: str | None = Field(None, pattern=r"^[!-~]{1,64}$", description="SLURM_JOB_ID")
    restarts: _Count = Field(0, description="SLURM_RESTART_COUNT")

    def __str__(self) -> str:
        """As people call it: "job 6 on n1, pid 4711"."""
        return f"{f'job {self.job} ' if self.job else ''}on {self.host}, pid {self.pid}"


class Record(ProcessIdentity):
    """The content of owner.json; times are Unix times in seconds, by the owner's clock."""

    token: str = Field(pattern=r"^[0-9a-f]{1,64}$", description="what one owner alone writes")
    state: Literal["running", "finished", "stopped"] = "running"
    round: _Count = Field(0, description="rounds done")
    rounds: _Count = Field(0, description="rounds to do")
    heartbeat: float = Field(ge=0, le=1e12)
    progress: float = Field(ge=0, le=1e12, description="when the newest round was done")

    @property
    def age(self) -> float:
        """Seconds since the heartbeat, by this host's clock."""
        return max(0.0, time.time() - self.heartbeat)


@dataclass(frozen=True)
class Seen:
    """One look at owner.json: what it says, None where that is nothing sensible, and what changes with a heartbeat."""

    record: Record | None
    mark: Any
    content: bytes | None


def look(run_dir: Path) -> Seen:
    """The owner's record as it stands now. Raises UserError where it is no regular file of reasonable size."""
    try:
        with open_regular(run_dir, OWNER) as handle:
            status, content = os.fstat(handle), os.read(handle, _LARGEST + 1)
    except FileNotFoundError:
        return Seen(None, None, None)
    except OSError as error:
        raise UserError(
            f"{OWNER} cannot be read: {error.strerror}", where=str(run_dir), mend="remove it where no run is writing"
        ) from None
    try:
        record = Record.model_validate_json(content)
    except ValidationError:
        record = None
    return Seen(record, (content, status.st_mtime_ns, status.st_ino), content)


def here() -> ProcessIdentity:
    """The process that asks."""
    pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID", "")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return ProcessIdentity(
        host="".join(letter for letter in host if "!" <= letter <= "~")[:255] or "unknown",
        boot=_line("/proc/sys/kernel/random/boot_id"),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started=_start_of(pid),
        job=job if job.isalnum() and job.isascii() else None,
        restarts=int(restarts) if restarts.isdecimal() and len(restarts) < 10 else 0,
    )


def lives(record: ProcessIdentity, me: ProcessIdentity, locked: bool) -> bool | None:
    """Whether the process of the record lives; None where that cannot be told from here.

    ``locked`` says that this process holds the kernel's lock, which an owner on the same host would hold. A requeued
    job's former processes are dead by Slurm's word; one that comes back from a network that was cut finds another
    owner's token and ends.
    """
    if record.boot == me.boot and (record.boot is not None or record.host == me.host):
        if record.pid_namespace != me.pid_namespace:  # another container: its process numbers say nothing here
            return False if locked else None
        mine = (record.pid, record.started) == (me.pid, me.started)
        return not locked if mine else _is_running(record.pid, record.started)
    if record.job is not None and record.job == me.job and record.restarts < me.restarts:
        return False
    if isinstance(record, Record) and record.host == me.host:
        booted = _boot_time()
        # A namesake that lives elsewhere would have been heard since this host has started.
        return False if booted is not None and record.heartbeat < booted else None
    return None


class OwnerWatch:
    """Looks at a record again and again until it is clear whether its owner lives."""

    def __init__(self, me: ProcessIdentity) -> None:
        self._me = me
        self._first: tuple[Any, float] | None = None

    def judge(self, seen: Seen, now: float, locked: bool) -> Verdict:
        """What is known by now; ``locked`` as in :func:`lives`.

        ``now`` is this process's own clock, in seconds: no two clocks are compared.
        """
        if seen.mark is None or (seen.record is not None and seen.record.state != "running"):
            return "free"
        known = lives(seen.record, self._me, locked) if seen.record is not None else None
        if known is not None:
            return "alive" if known else "dead"
        if self._first is None:
            self._first = seen.mark, now
        mark, since = self._first
        if seen.mark != mark:
            return "alive"
        # A living owner puts a damaged record right with its next heartbeat.
        limit = SILENCE_SECONDS if seen.record is not None else 3 * HEARTBEAT_SECONDS
        return "dead" if now - since >= limit else "unknown"


def _is_running(pid: int, started: int | None) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    now = _start_of(pid)
    return now is None or started is None or now == started


def _start_of(pid: int) -> int | None:
    """When a process has started, in clock ticks after the boot; 0 for one that is dead and not yet collected."""
    line = _line(f"/proc/{pid}/stat")
    if line is None:
        return None
    fields = line.rpartition(")")[2].split()  # the command's name may hold anything
    return 0 if fields[0] in "ZX" else int(fields[19])


def _boot_time() -> float | None:
    lines = (_text("/proc/stat") or "").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("btime ")), None)


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _line(path: str) -> str | None:
    text = _text(path)
    return text.strip() if text is not None else None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
