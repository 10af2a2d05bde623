"""One owner of a run directory: taken before the first file is written, held until the last one is.

Two things keep others out. A lock of the kernel on ``owner.lock``, where the file system has such locks: it ends with
its process, however that ends. And ``owner.json``, a record with a heartbeat, for hosts that do not share the lock. A
record of a process of this host is checked against the process table; one of another host is watched, on this host's
own clock, until its heartbeat moves or has stood still for a minute. Who then follows is decided by
:mod:`fedmef_dist.runs.succession`.
"""

import errno
import os
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from fedmef_dist.base.atomic import is_left_over, write_bytes
from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.base.lock_file import LockFile
from fedmef_dist.base.notices import tell
from fedmef_dist.runs import owner_record
from fedmef_dist.runs.owner_record import OWNER, OwnerWatch, Record, Seen, here, look
from fedmef_dist.runs.succession import Succession

LOCK = "owner.lock"
_LOOK_SECONDS = 0.2
# How long a lock may outlive its owner: a file server gives up the locks of a lost host after a minute or two.
_LEASE_SECONDS = 150.0
_JOIN_SECONDS = 5.0
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Owner:
    """The right to write into ``run_dir``; a context manager, which gives it back.

    Args:
        run_dir: the directory, which exists.
        rounds: rounds to do.

    Raises:
        UserError: another run owns it.
        OSError: the directory cannot be written.
    """

    def __init__(self, run_dir: Path, rounds: int = 0) -> None:
        self._run_dir = run_dir
        self._lock = LockFile(run_dir / LOCK)
        self._succession = Succession(run_dir)
        self._found = _wait_for(run_dir, self._lock, self._succession)
        self._lost = ""
        self._begun = self.finished = False
        self._directory = run_dir.stat()
        self._place, self._token = here(), secrets.token_hex(8)
        self._round, self._rounds, self._progress = 0, rounds, time.time()
        try:
            self._arrive()
            self._succession.clean()
        except BaseException:
            self._lock.release()
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)

    def __enter__(self) -> "Owner":
        """Starts the heartbeat."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Ends the heartbeat, writes how the run ended, and lets go.

        A start that was refused before :meth:`begin` leaves the record as it was.
        """
        self._ended.set()
        self._thread.join(_JOIN_SECONDS)
        try:
            with suppress(OSError):  # a full disk: the process's end says it too
                self._leave()
        finally:
            self._lock.release()

    def begin(self, round_number: int) -> None:
        """From here on files are written; ``round_number`` rounds are done. Raises UserError where another run came."""
        self._make_sure()
        self._begun = True
        self.reach(round_number)

    def reach(self, round_number: int) -> None:
        """So many rounds are done. Raises FilesLostError, see :meth:`check`."""
        self._round, self._progress = round_number, time.time()
        self.look()

    def look(self) -> None:
        """Looks now, whatever has become of the heartbeat. Raises FilesLostError, see :meth:`check`."""
        self._look_around()
        self.check()

    def check(self) -> None:
        """Raises FilesLostError where it was found that the directory is no longer this run's."""
        if self._lost:
            raise FilesLostError(self._lost)

    def _arrive(self) -> None:
        """Writes the first record. Raises UserError where another start has given this one up."""
        try:
            for path in self._run_dir.glob(".*.tmp"):
                if is_left_over(path.name):
                    path.unlink(missing_ok=True)
            if self._succession.is_overtaken():
                raise _busy(self._run_dir, look(self._run_dir))
            self._write("running")
        except OSError:  # a full disk: no record is due that whoever comes next would wait for
            with suppress(OSError):
                self._succession.give_back()
            raise

    def _make_sure(self) -> None:
        seen = look(self._run_dir)
        if seen.record is not None and seen.record.token != self._token:
            raise _busy(self._run_dir, seen)

    def _leave(self) -> None:
        self._look_around()
        if self._lost:
            return
        if self._begun:
            self._write("finished" if self.finished else "stopped", durable=True)
            if self._found.content is None:  # whoever removes the record by hand need not wait
                self._succession.give_back()
            return
        if self._found.content is None:
            (self._run_dir / OWNER).unlink(missing_ok=True)
        else:
            write_bytes(self._run_dir / OWNER, self._found.content)
        self._succession.give_back()

    def _beat(self) -> None:
        while not self._ended.wait(owner_record.HEARTBEAT_SECONDS) and not self._lost:
            try:
                self._look_around()
                if not self._lost:
                    self._write("running")
            except OSError:
                with suppress(OSError):  # a full disk still takes the time; any other trouble shows at the next round
                    os.utime(self._run_dir / OWNER, follow_symlinks=False)

    def _look_around(self) -> None:
        """Finds out whether the directory is still there and still this run's."""
        try:
            there = self._run_dir.stat()
        except OSError as error:
            if error.errno in _GONE:  # else a file server that does not answer now
                self._lost = f"the run directory {self._run_dir} was removed while the run was writing into it"
            return
        if not os.path.samestat(there, self._directory):
            self._lost = f"the run directory {self._run_dir} was replaced while the run was writing into it"
            return
        try:
            other = look(self._run_dir).record
        except UserError:
            return  # no record at all: the next heartbeat takes its place
        if other is not None and other.token != self._token:
            self._lost = f"another run has taken the run directory {self._run_dir} over: {describe(other)}"

    def _write(self, state: Literal["running", "finished", "stopped"], *, durable: bool = False) -> None:
        record = Record(
            **self._place.model_dump(),
            token=self._token,
            state=state,
            round=self._round,
            rounds=self._rounds,
            heartbeat=time.time(),
            progress=self._progress,
        )
        write_bytes(self._run_dir / OWNER, record.model_dump_json(indent=2).encode() + b"\n", durable=durable)


class Progress:
    """A tracker that tells the owner of every round, so that others can see how far the run is."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def log(self, metrics: Mapping[str, Any]) -> None:
        """A round is done. Raises FilesLostError where the directory is no longer this run's."""
        self._owner.reach(int(metrics["round"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing: the run has finished when its files are written."""

    def saved(self, folder: Path) -> None:
        """Nothing: the owner asks itself."""

    def close(self) -> None:
        """Nothing to let go of."""

    def state(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}


def describe(record: Record) -> str:
    """Who owns a directory: "job 6 on n1, pid 4711, round 8, 3 s ago"."""
    return f"{record}, round {record.round}, {record.age:.0f} s ago"


def _wait_for(run_dir: Path, lock: LockFile, succession: Succession) -> Seen:
    """Takes the lock once no other owner lives, and follows it; returns the record that it left.

    Raises UserError while another owner lives.
    """
    watch, began, told = OwnerWatch(here()), time.monotonic(), False
    try:
        while True:
            held, seen, now = lock.take(), look(run_dir), time.monotonic()
            verdict = watch.judge(seen, now, lock.held)
            if held and verdict in ("free", "dead") and succession.take(seen, now):
                return seen
            if verdict == "alive" or now - began > _LEASE_SECONDS:
                raise _busy(run_dir, seen)
            if not told and now - began > 1:
                tell(f"waiting to see whether another run still writes into {run_dir}{_who(seen)}")
                told = True
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        lock.release()
        raise


def _busy(run_dir: Path, seen: Seen) -> UserError:
    return UserError(
        f"another run is writing here{_who(seen)}",
        where=str(run_dir),
        mend="wait for its end or stop it (fedmef-dist status shows how far it is), or choose another --run-dir",
    )


def _who(seen: Seen) -> str:
    return f": {describe(seen.record)}" if seen.record is not None and seen.record.state == "running" else ""
