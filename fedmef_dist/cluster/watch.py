"""What the ranks know of each other while they compute: where each one is, who answers, by when the run has to stop.

A thread of every rank looks at its node's board a few times a second; that of one rank a node, its leader, also asks
the ranks' store for all of them, so that requests grow with the nodes. The main thread only sets and reads attributes:
the store lives in rank 0's process (under torchrun in torchrun's) and may be as dead or as stuck as any rank.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch.distributed as dist

from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.board import Board, Note
from fedmef_dist.cluster.ending import FAULT, await_at_exit
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.guard import HUNG_SECONDS, Cause, Guard, SignsOfLife
from fedmef_dist.cluster.node_report import names
from fedmef_dist.cluster.progress import STUCK_SECONDS, CohortProgress, Progress, patience, read_mark
from fedmef_dist.cluster.relay import CALL, CLIENTS, DEADLINE, Relay, here_key, read_reports

_LOOK_SECONDS = 0.25
_PUBLISH_SECONDS = 0.1
# From so many nodes on each asks more seldom; less often than that none does, or the store would seem to have hung.
_FEW_NODES, _SLOWEST_LOOK = 64, 2.0
_ANSWER_SECONDS = 3.0
# A rank that loads or saves much may hold Python's lock for a while; launchers kill 30 s after they ask to stop.
_SILENCE_SECONDS = 15.0
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
        self._called_at: float | None = None
        self._called = self._over = self._leads = False
        self._known = Note()  # what the node's leader has found in the store
        self._guard = Guard(self._signs, self._end)
        self._closing, self._moved = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.share([(rank,) for rank in range(environment.world_size)], Board.alone(environment.rank))

    def share(self, nodes: Sequence[tuple[int, ...]], board: Board) -> None:
        """Says which ranks share a node, and gives this one its node's board; else each has a node of its own."""
        own = self._environment.rank
        self._nodes, self._board = nodes, board
        self._node = next(place for place, ranks in enumerate(nodes) if own in ranks)
        self._neighbour = board.members[(board.members.index(own) + 1) % len(board.members)]
        self._pace = pace(len(nodes))
        if self._store is not None:
            self._relay = Relay(self._store, nodes, self._node, self._pace * _LOOK_SECONDS)

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
                self._store.set(DEADLINE, "")
                self._store.set(CALL, "")
                self._store.set(CLIENTS, "0")
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
        else:
            self._board.close()

    def roll_call(self) -> str:
        """Asks every rank for a sign of life; says who gives none, else who has not come to where the others wait.

        Takes up to three seconds, of many ranks five. Raises dist.DistError where the store is gone.
        """
        store, own = self._store, self._environment.rank
        if store is None:
            return "no other rank can be asked"
        store.set(CALL, "1")
        deadline = time.monotonic() + _ANSWER_SECONDS + (self._pace - 1) * _LOOK_SECONDS
        while time.monotonic() < deadline and not store.check([here_key(node) for node in range(len(self._nodes))]):
            time.sleep(0.05)
        found = read_reports(store, self._nodes) | {own: self._note()}
        silent = [rank for rank, note in sorted(found.items()) if not note.answered and rank != own]
        late = [rank for rank, note in sorted(found.items()) if not note.waiting]
        if silent:
            return _SILENT + names(silent, found)
        return "not arrived: " + names(late, found) if late else "every rank answers"

    def without_store(self) -> str:
        """What to say where the store is gone, and its owner with it."""
        if self._environment.launcher == "torchrun":
            return "torchrun's store is gone"
        here = names([0], self._board.read()) if 0 in self._board.members else self._known.server
        return _SILENT + (here or names([0], {})) + " (it keeps the ranks' store)"

    def _look(self) -> None:
        try:
            while not self._closing.is_set():
                self._moved.clear()
                self._turn()
                self._closing.wait(_PUBLISH_SECONDS)
                self._moved.wait(_LOOK_SECONDS - _PUBLISH_SECONDS)
            self._leave()
        except dist.DistError as error:
            # At the end of a run rank 0 may just be the first to leave; nobody reads this any more then.
            self.lost = f"the ranks' store is gone: {str(error).splitlines()[0]}"
            self._board.write(self._note())

    def _turn(self) -> None:
        """One look at the board, and for all of the node at the store. Raises dist.DistError where that is gone."""
        own = self._environment.rank
        self._heed(self._board.read())
        self._board.write(self._note())
        self._leads = self._board.leader() == own
        if self._leads:
            self._relay.turn(self._board.read())
            self._known = self._relay.known
            self._heed(self._board.read())
            self._look_for_silent()
            self._board.write(self._note())

    def _leave(self) -> None:
        self._over = True
        self._board.write(self._note())
        notes, members = self._board.read(), self._board.members
        if all((rank in notes and notes[rank].over) or self._board.is_dead(rank) for rank in members):
            self._relay.leave(notes)

    def _note(self) -> Note:
        return replace(
            self._known,
            host=self._host,
            place=self.place,
            waiting=self.waiting,
            mark=self.progress.text(self.waiting),
            trained=self.cohort.own,
            answered=self._called_at is not None,
            over=self._over,
            lost=self.lost,
            deadline=_earliest(self.deadline, self.own_deadline()),
            called=self._called,
        )

    def _heed(self, notes: Mapping[int, Note]) -> None:
        """Learns what the ranks of the node know."""
        found = [self._known, *notes.values()]
        self._known = max(found, key=lambda note: note.looks)
        self._called = any(note.called for note in found)
        self.deadline = _earliest(self.own_deadline(), *(note.deadline for note in found))
        self.cohort.seen = self._known.seen
        if self._called_at is None and (self.deadline is not None or self._called):
            self._called_at = time.monotonic()
        if self._called:
            self.lost = "another rank has lost its peers"
        elif self.lost is None:
            self.lost = next((note.lost for note in notes.values() if note.lost is not None), None)

    def _look_for_silent(self) -> None:
        """A launcher asks to stop also because a rank has died; those who live have answered the request by now."""
        if self._called or self._called_at is None or time.monotonic() - self._called_at <= _SILENCE_SECONDS:
            return
        self._called_at = float("inf")
        if not self._relay.all_are_here():
            self.lost = f"a rank gave no sign of life for {_SILENCE_SECONDS:g} s"

    def _signs(self) -> SignsOfLife:
        """For the guard, whose thread the store cannot hold up; its call shows the node that this process runs."""
        self._board.beat()
        rank, alone = self._neighbour, self._neighbour == self._environment.rank
        note = self._board.read().get(rank, Note())
        node = self._relay.next if self._leads and len(self._nodes) > 1 else None
        return SignsOfLife(
            self._known.looks,
            None if alone or note.over else str(self._board.beat_of(rank)),
            self.lost,
            read_mark(note.mark) if self.waiting and not alone else None,
            self.patience,
            None if node is None or node.over else node.beat,
            node.mark if self.waiting and node is not None else None,
        )

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
        signs = self._signs()
        mark = {"stuck": signs.mark, "stuck node": signs.node_mark}.get(cause)
        if mark is not None:
            return f"no progress for {patience(mark.longest, self.patience):.0f} s"
        return f"no sign of life for {HUNG_SECONDS:g} s"

    def _who_has_hung(self, cause: Cause) -> str:
        """What this rank has to say; empty where another one speaks."""
        rank, store = self._environment.rank, self._store
        assert store is not None
        if cause not in ("store", "lost") and store.compare_set(CLAIMED, "", str(rank)) == str(rank).encode():
            silent = self.roll_call()
            after = self._nodes[(self._node + 1) % len(self._nodes)]
            hung = names(after if cause.endswith("node") else [self._neighbour], read_reports(store, self._nodes))
            if cause.startswith("stuck"):  # its process lives and has answered, so the roll call names nobody
                return f"waits for {hung}"
            return silent if silent.startswith(_SILENT) else _SILENT + hung
        speaks = cause == "store" and rank in (0, 1, self._environment.local_world_size)
        return self.without_store() if speaks else ""


def pace(nodes: int) -> float:
    """How many times longer than few nodes each of many leaves the store alone.

    The store's requests grow with the nodes only up to 64 of them, then stay, until each asks once in two seconds.
    """
    return min(max(nodes / _FEW_NODES, 1.0), _SLOWEST_LOOK / _LOOK_SECONDS)


def _earliest(*times: float | None) -> float | None:
    return min((time for time in times if time is not None), default=None)
