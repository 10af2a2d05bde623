"""What the ranks know of each other while they compute: where each one is, who answers, by when the run has to stop.

A thread of every rank looks into the store a few times a second. The main thread only sets and reads attributes: the
store lives in rank 0's process (under torchrun in torchrun's) and may be as dead or as stuck as any rank.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from math import isfinite

import torch.distributed as dist

from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.ending import FAULT, await_at_exit
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.guard import HUNG_SECONDS, Cause, Guard, SignsOfLife
from fedmef_dist.cluster.progress import STUCK_SECONDS, CohortProgress, Mark, Progress, patience, read_mark

_LOOK_SECONDS = 0.25
_PUBLISH_SECONDS = 0.1
# From so many ranks on each looks more seldom; less often than that nobody does, or it would seem to have hung.
_FEW_RANKS, _SLOWEST_LOOK = 64, 2.0
_ANSWER_SECONDS = 3.0
# A rank that loads or saves much may hold Python's lock for a while; launchers kill 30 s after they ask to stop.
_SILENCE_SECONDS = 15.0
_SHOWN = 8
_BEAT_SECONDS = 2.0
_DEADLINE, _CALL, _CLIENTS = "watch/deadline", "watch/call", "watch/clients"
_OVER = "over"  # the last beat of a rank that has left
_SILENT = "no answer from "
# Who may speak about a failure, and whether that was done.
CLAIMED, SHOWN = "failure/claimed", "failure/shown"


class Watch:
    """One rank's view of the others; without a store (a single process) it only holds the attributes.

    Attributes:
        waiting: whether it waits in a collective.
        deadline: Unix time by which the run has to stop, once any rank has asked for it.
        own_deadline: asked a few times a second for this rank's wish; the earliest of all ranks counts.
        lost: why the run cannot go on, found by the thread while the main thread was busy.
        ends_process: whether the process may be ended where another rank has hung and the main thread waits for it.
        progress: the marks of this rank's main thread.
        cohort: clients of the round that are trained; rank 0 sees those of all ranks.
        patience: seconds for which the mark of another rank may stand still while this one waits, whatever its steps.
    """

    def __init__(self, environment: Environment, store: dist.Store | None = None) -> None:
        self._place, self.waiting = "start-up", False
        self.deadline: float | None = None
        self.own_deadline: Callable[[], float | None] = lambda: None
        self.lost: str | None = None
        self.ends_process = False
        self.progress, self.patience = Progress(), STUCK_SECONDS
        self.cohort = CohortProgress()
        self._environment, self._store = environment, store
        self._host = socket.gethostname()
        self._server = ""
        self._published = ""
        self._called_at: float | None = None
        self._looked_at = self._beat_at = -float("inf")
        self._pace, self._beats = pace(environment.world_size), False
        self._looks, self._neighbour = 0, (environment.rank + 1) % environment.world_size
        self._beat: str | None = ""
        self._mark: Mark | None = None
        self._warned: set[str] = set()
        self._guard = Guard(self._signs, self._end)
        self._closing, self._moved = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    @property
    def place(self) -> str:
        """Where this rank is, for the messages of the others, for example ``round 3, client 17``."""
        return self._place

    @place.setter
    def place(self, place: str) -> None:
        self._place = place
        self.progress.mark()
        self._moved.set()

    def start(self) -> None:
        """Begins to look, in a thread."""
        if self._store is not None:
            if self._environment.rank == 0:
                self._store.set(_DEADLINE, "")
                self._store.set(_CALL, "")
                self._store.set(_CLIENTS, "0")
            self._thread.start()
            self._guard.start()

    def close(self) -> None:
        """Stops looking; does not wait for a store that is stuck."""
        self._guard.close()
        self._closing.set()
        self._moved.set()
        if self._thread.is_alive():
            self._thread.join(2 * _LOOK_SECONDS)
        if self._thread.is_alive():
            await_at_exit(self._thread)

    def roll_call(self) -> str:
        """Asks every rank for a sign of life; says who gives none, else who has not come to where the others wait.

        Takes up to three seconds, of many ranks five. Raises dist.DistError where the store is gone.
        """
        store, ranks = self._store, range(self._environment.world_size)
        if store is None:
            return "no other rank can be asked"
        store.set(_CALL, "1")
        self._answer(store)
        deadline = time.monotonic() + _ANSWER_SECONDS + (self._pace - 1) * _LOOK_SECONDS
        while time.monotonic() < deadline and not store.check([_here(rank) for rank in ranks]):
            time.sleep(0.05)
        silent = [rank for rank in ranks if not store.check([_here(rank)])]
        places = self._places()
        late = [rank for rank in ranks if places[rank][2] != "waiting"]
        if silent:
            return _SILENT + _names(silent, places)
        return "not arrived: " + _names(late, places) if late else "every rank answers"

    def _places(self) -> dict[int, tuple[str, str, str]]:
        assert self._store is not None
        return {rank: _read_place(self._store, rank) for rank in range(self._environment.world_size)}

    def without_store(self) -> str:
        """What to say where the store is gone, and its owner with it."""
        if self._environment.launcher == "torchrun":
            return "torchrun's store is gone"
        return _SILENT + _names([0], {0: _split_place(self._server)}) + " (it keeps the ranks' store)"

    def _look(self) -> None:
        store = self._store
        assert store is not None
        try:
            while not self._closing.is_set():
                self._moved.clear()
                self._publish(store)
                self._beat_if_due(store)
                self._look_if_due(store)
                self._looks += 1
                self._closing.wait(self._pace * _PUBLISH_SECONDS)
                self._moved.wait(self._pace * (_LOOK_SECONDS - _PUBLISH_SECONDS))
            store.set(_beat(self._environment.rank), _OVER)
        except dist.DistError as error:
            # At the end of a run rank 0 may just be the first to leave; nobody reads this any more then.
            self.lost = f"the ranks' store is gone: {str(error).splitlines()[0]}"

    def _look_if_due(self, store: dist.Store) -> None:
        if time.monotonic() - self._looked_at < self._pace * _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        keys = [_DEADLINE, _CALL, _place(0), *([_CLIENTS] if self._environment.rank == 0 else [])]
        found, call, self._server, *trained = (_text(value) for value in store.multi_get(keys))
        self.cohort.seen = _number(trained[0]) if trained else None
        deadline, own = self._time(found), self.own_deadline()
        if own is not None and (deadline is None or own < deadline):
            deadline = own
            store.set(_DEADLINE, repr(own))
        self.deadline = deadline
        if deadline is not None or call:
            self._answer_once(store)
        if call:
            self.lost = "another rank has lost its peers"
        elif self._called_at is not None and time.monotonic() - self._called_at > _SILENCE_SECONDS:
            self._look_for_silent(store)

    def _time(self, text: str) -> float | None:
        """A Unix time that a rank wrote; what no rank writes, a stranger at the port did, and it is ignored."""
        try:
            time_ = float(text) if text else None
        except ValueError:
            time_ = float("nan")
        if time_ is None or isfinite(time_):
            return time_
        if text not in self._warned:
            self._warned.add(text)
            tell(f"a wrong value in the ranks' store is ignored: {_DEADLINE} is {text[:40]!r}; who else has its port?")
        return None

    def _beat_if_due(self, store: dist.Store) -> None:
        if time.monotonic() - self._beat_at < _BEAT_SECONDS:
            return
        self._beat_at = time.monotonic()
        store.set(_beat(self._environment.rank), f"{self._beat_at!r} {self.progress.text(self.waiting)}")
        key = _beat(self._neighbour)
        self._beats = self._beats or store.check([key])
        beat = _text(store.get(key)) if self._beats else ""
        self._beat = None if beat == _OVER else beat
        self._mark = read_mark(beat.partition(" ")[2])

    def _signs(self) -> SignsOfLife:
        return SignsOfLife(self._looks, self._beat, self.lost, self._mark if self.waiting else None, self.patience)

    def _end(self, cause: Cause) -> None:
        """Says who has hung, unless another rank does, and ends the process; called by the guard, in its thread."""
        if self.ends_process:  # also where the store does not answer this question any more
            farewell = threading.Timer(HUNG_SECONDS, os._exit, (FAULT,))
            farewell.daemon = True
            farewell.start()
        try:
            text = self._who_has_hung(cause)
        except dist.DistError:
            text = self.without_store()
        if text:
            rank, size = self._environment.rank, self._environment.world_size
            where = f"rank {rank} of {size} on {self._host}: stopped in {self.place}"
            tell(f"{where}, {self._missed(cause)}: {text}")
        else:
            time.sleep(2 * _ANSWER_SECONDS)  # an early exit would end the rank that speaks
        if self.ends_process and not self._closing.is_set():
            os._exit(FAULT)

    def _missed(self, cause: Cause) -> str:
        if cause == "stuck" and self._mark is not None:
            return f"no progress for {patience(self._mark.longest, self.patience):.0f} s"
        return f"no sign of life for {HUNG_SECONDS:g} s"

    def _who_has_hung(self, cause: Cause) -> str:
        """What this rank has to say; empty where another one speaks."""
        rank, store = self._environment.rank, self._store
        assert store is not None
        if cause in ("neighbour", "stuck") and store.compare_set(CLAIMED, "", str(rank)) == str(rank).encode():
            silent = self.roll_call()
            neighbour = _names([self._neighbour], self._places())
            if cause == "stuck":  # its process lives and has answered, so the roll call names nobody
                return f"waits for {neighbour}"
            return silent if silent.startswith(_SILENT) else _SILENT + neighbour
        speaks = cause == "store" and rank in (0, 1, self._environment.local_world_size)
        return self.without_store() if speaks else ""

    def _publish(self, store: dist.Store) -> None:
        state = f"{self._host}\n{self.place}\n{'waiting' if self.waiting else 'busy'}"
        if state != self._published:
            store.set(_place(self._environment.rank), state)
            self._published = state
        trained = self.cohort.unpublished()
        if trained:
            store.add(_CLIENTS, trained)

    def _answer_once(self, store: dist.Store) -> None:
        if self._called_at is None:
            self._called_at = time.monotonic()
            self._answer(store)

    def _answer(self, store: dist.Store) -> None:
        store.set(_here(self._environment.rank), "1")

    def _look_for_silent(self, store: dist.Store) -> None:
        """A launcher asks to stop also because a rank has died; those who live have answered the request by now."""
        self._called_at = float("inf")
        if not store.check([_here(rank) for rank in range(self._environment.world_size)]):
            self.lost = f"a rank gave no sign of life for {_SILENCE_SECONDS:g} s"


def pace(ranks: int) -> float:
    """How many times longer than few ranks each of many leaves the store alone.

    The store's requests grow with the ranks only up to 64 of them, then stay, until each looks once in two seconds.
    """
    return min(max(ranks / _FEW_RANKS, 1.0), _SLOWEST_LOOK / _LOOK_SECONDS)


def _beat(rank: int) -> str:
    return f"watch/beat/{rank}"


def _here(rank: int) -> str:
    return f"watch/here/{rank}"


def _place(rank: int) -> str:
    return f"watch/place/{rank}"


def _read_place(store: dist.Store, rank: int) -> tuple[str, str, str]:
    return _split_place(_text(store.get(_place(rank))) if store.check([_place(rank)]) else "")


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def _number(text: str) -> int | None:
    """A count that the ranks have made; None where a stranger has written something else there."""
    return int(text) if text.isdecimal() and len(text) < 19 else None


def _split_place(text: str) -> tuple[str, str, str]:
    parts = text.split("\n")
    # Anything else no rank has written.
    host, place, state = parts if len(parts) == 3 else ("an unknown host", "start-up", "busy")
    return host, place, state


def _names(ranks: list[int], places: dict[int, tuple[str, str, str]]) -> str:
    shown = [f"rank {rank} on {places[rank][0]}, last seen in {places[rank][1]}" for rank in ranks[:_SHOWN]]
    return "; ".join(shown) + (f"; and {len(ranks) - _SHOWN} more" if len(ranks) > _SHOWN else "")
