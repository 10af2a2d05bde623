"""A run ends on all ranks or on none: the rank that fails says why, once, and the others follow within seconds.

The launchers stop the other ranks when one exits with an error, and broken connections wake those that wait in a
collective. What is left to do here is to agree on who speaks, and to keep quiet where somebody has spoken.
"""

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.base.text import printable
from fedmef_dist.cluster.ending import FAULT, INTERRUPTED, await_at_exit
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.transport import PeerLostError, mpi_world
from fedmef_dist.cluster.watch import CLAIMED, SHOWN

USER_ERROR = 2

_ARRIVED = "failure/arrived"
_PATIENCE_SECONDS = 5.0
# A roll call takes three seconds; a store that does not answer within this time is stuck.
_STORE_SECONDS = 6.0
T = TypeVar("T")


@contextmanager
def ends_together(place: Environment | Group) -> Iterator[None]:
    """Turn an error of the body into a message that is shown once, and an exit of every rank.

    UserError: its message, exit status 2. FilesLostError: one line, status 1. Any other exception: its traceback with
    rank and host in front, status 1.
    Peers lost: one line of one rank that says who is missing and where it was, status 1. KeyboardInterrupt: status 130.
    Give the Group where there is one: its store lets the ranks agree on who speaks. Leaves by SystemExit, or under
    mpirun by MPI's Abort. For the main thread.
    """
    voice = _Voice(place)
    try:
        yield
    except KeyboardInterrupt:
        voice.end(INTERRUPTED)
    except UserError as error:
        _leave_quietly_on_sigterm(USER_ERROR)
        voice.wait_for_server()
        voice.say(str(error))
        voice.wait_for_all()
        voice.end(USER_ERROR)
    except PeerLostError as error:
        # The launcher may be ending this rank for the very loss that it is about to explain.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        voice.explain_loss(error)
        voice.end(FAULT)
    except FilesLostError as error:
        _leave_quietly_on_sigterm(FAULT)
        voice.say(f"{voice.name}: {error}")
        voice.end(FAULT)
    except Exception as error:
        _leave_quietly_on_sigterm(FAULT)
        report = "".join(f"{voice.name}: {line}\n" for line in traceback.format_exc().splitlines())
        if not voice.say(report.rstrip()):
            voice.say_always(f"{voice.name}: stopped as well: {type(error).__name__}")
        voice.end(FAULT)


def _leave_quietly_on_sigterm(status: int) -> None:
    """From here on SIGTERM means that a rank which has spoken is gone; srun reports the highest status it collects."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(status))


def _leave_for_torchrun(text: str) -> None:
    """The first words of this process, for the end of the report that torchrun prints when a rank has failed."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        words = {"message": text, "extraInfo": {"py_callstack": text, "timestamp": str(int(time.time()))}}
        with suppress(OSError), Path(path).open("x", encoding="utf-8") as file:
            json.dump({"message": words}, file)


class _Voice:
    """Who may speak about a failure: the first rank that claims it in the store."""

    def __init__(self, place: Environment | Group) -> None:
        self._group = place if isinstance(place, Group) else None
        environment = place.environment if isinstance(place, Group) else place
        self._environment = environment
        self._store = self._group.store if self._group is not None else None
        self._first = False
        self.name = f"rank {environment.rank} of {environment.world_size} on {socket.gethostname()}"

    def say(self, text: str) -> bool:
        """Show the error, unless another rank has claimed the failure; whether this rank spoke."""
        if self.claim():
            self.say_always(text)
            self._ask(self._mark_shown, default=True)
        else:
            self._wait(self._shown)  # an early exit would make the launcher kill the rank that is about to speak
        return self._first

    def claim(self) -> bool:
        """Whether this rank is the first to fail, as far as the store knows; the first one ends the others."""
        self._first = self._ask(self._claim, default=True)
        return self._first

    def explain_loss(self, error: PeerLostError) -> None:
        """Say who is missing, unless another rank does: the first that noticed, or where the store is lost a fixed one.

        The store dies with rank 0, or with its whole node: then rank 1 or the first rank of the next node speaks.
        """
        self.claim()
        if self._group is None:
            return self.say_always(f"{self.name}: stopped, a peer is gone: {error}")
        watch = self._group.watch
        text = f"{self.name}: stopped in {watch.place}, a peer is gone: {error}"
        missing = self._ask(lambda store: watch.roll_call() if self._first else "", default=None)
        if missing:
            self.say_always(f"{text}; {missing}")
            self._ask(self._mark_shown, default=True)
        elif missing == "":
            self._wait(self._shown, _STORE_SECONDS)
        elif self._environment.rank in (0, 1, self._environment.local_world_size):
            self.say_always(f"{text}; {watch.without_store()}")

    def say_always(self, text: str) -> None:
        """Show a line, or a traceback's, whoever spoke before."""
        shown = printable(text, keep="\n")
        with suppress(OSError, ValueError):
            sys.stderr.write(f"{shown}\n")  # one write, or lines of several ranks mix
            sys.stderr.flush()
        _leave_for_torchrun(shown)

    def wait_for_server(self) -> None:
        """Give rank 0 the first word: wrong input is most often wrong on every rank."""
        self._ask(self._arrive, default=True)
        if self._environment.rank != 0:
            self._mpi()  # MPI starts on all ranks or on none, and rank 0 needs it to end them all
            self._wait(self._shown)

    def wait_for_all(self) -> None:
        """Let the others come here before the first exit makes the launcher end them with a status of its own."""
        if self._store is not None:
            self._wait(lambda: self._ask(self._all_arrived, default=True))

    def end(self, status: int) -> None:
        """Leave; under mpirun take the others along, which may be waiting for this rank inside MPI."""
        if self._group is not None:
            self._group.watch.close()
        world = self._mpi() if self._first else None
        if world is not None:
            world.Abort(status)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing but the interpreter's own end is left
        sys.exit(status)

    def _mpi(self) -> Any:
        """COMM_WORLD where mpirun started several ranks, which it does not stop by itself before MPI is initialised."""
        if self._environment.launcher not in ("openmpi", "mpich") or self._environment.world_size == 1:
            return None
        try:
            return mpi_world(self._environment)
        except UserError:  # no MPI library, which may be the very error that is being reported
            return None

    def _claim(self, store: dist.Store) -> bool:
        mine = str(self._environment.rank)
        return bool(store.compare_set(CLAIMED, "", mine) == mine.encode())

    def _mark_shown(self, store: dist.Store) -> bool:
        store.set(SHOWN, "1")
        return True

    def _arrive(self, store: dist.Store) -> bool:
        return store.add(_ARRIVED, 1) > 0

    def _all_arrived(self, store: dist.Store) -> bool:
        return store.add(_ARRIVED, 0) >= self._environment.world_size

    def _shown(self) -> bool:
        return self._ask(lambda store: store.check([SHOWN]), default=False)

    def _ask(self, question: Callable[[dist.Store], T], default: T) -> T:
        """The store's answer; the default where it went down with rank 0 or is stuck with it."""
        store = self._store
        if store is None:
            return default
        answers: queue.SimpleQueue[T] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(question(store))
            except dist.DistError:
                answers.put(default)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            return answers.get(timeout=_STORE_SECONDS)
        except queue.Empty:
            await_at_exit(thread)
            self._store = None
            return default

    def _wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        deadline = time.monotonic() + (_PATIENCE_SECONDS if seconds is None else seconds)
        while time.monotonic() < deadline and not condition():
            time.sleep(0.05)
