"""What the ranks of a node ask the store, asked by one of them for all: its leader."""

import time
from collections.abc import Mapping, Sequence
from math import isfinite

import torch.distributed as dist

from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.board import Note
from fedmef_dist.cluster.node_report import NodeReport, names, read_report, shown

DEADLINE, CALL, CLIENTS = "watch/deadline", "watch/call", "watch/clients"
BEAT_SECONDS = 2.0


class Relay:
    """The leader's view of the store; that of the other ranks of its node is as it was when they led, if ever.

    Args:
        store: of all ranks.
        nodes: the ranks of each.
        node: this one's place among them.
        look_seconds: how often the store is asked.

    Attributes:
        known: what the store has said, as its part of a note.
        next: the report of the node after this one, around a ring.
    """

    def __init__(self, store: dist.Store, nodes: Sequence[Sequence[int]], node: int, look_seconds: float) -> None:
        self.known, self.next = Note(), NodeReport()
        self._store, self._node, self._look_seconds = store, node, look_seconds
        self._nodes, self._ranks = len(nodes), len(nodes[node])
        self._asked_at = self._beat_at = self._peeked_at = -float("inf")
        self._shown: Mapping[int, object] = {}
        self._answers, self._reports, self._here = 0, False, False
        self._warned: set[str] = set()

    def turn(self, notes: Mapping[int, Note]) -> None:
        """Tells the store how the ranks of the node get on, and asks it what they need to know, as far as it is due.

        Raises dist.DistError where the store is gone.
        """
        now = time.monotonic()
        due = now - self._asked_at >= self._look_seconds
        answers = sum(note.answered for note in notes.values())
        if due or answers != self._answers:  # a roll call does not wait for that
            self._answers = answers
            self._tell(notes, now)
        if due:
            self._asked_at = now
            self._ask(notes, now)

    def leave(self, notes: Mapping[int, Note]) -> None:
        """Says that all ranks of the node have left. Raises dist.DistError where the store is gone."""
        self._store.set(report_key(self._node), NodeReport("over", True, notes).text())

    def all_are_here(self) -> bool:
        """Whether every node has answered for all of its ranks. Raises dist.DistError where the store is gone."""
        return bool(self._store.check([here_key(node) for node in range(self._nodes)]))

    def _tell(self, notes: Mapping[int, Note], now: float) -> None:
        told = {rank: shown(note) for rank, note in notes.items()}
        answered = len(notes) == self._ranks and all(note.answered for note in notes.values())
        due = now - self._beat_at >= BEAT_SECONDS
        if due or told != self._shown:
            self._beat_at, self._shown = now if due else self._beat_at, told
            self._store.set(report_key(self._node), NodeReport(repr(self._beat_at), False, notes).text())
        if answered and not self._here:
            self._here = True
            self._store.set(here_key(self._node), "1")
        trained, added = sum(note.trained for note in notes.values()), max(note.added for note in notes.values())
        if trained > added:
            self._store.add(CLIENTS, trained - added)
        self.known.added = max(trained, added)

    def _ask(self, notes: Mapping[int, Note], now: float) -> None:
        keys = [DEADLINE, CALL, report_key(0), *([CLIENTS] if self._node == 0 else [])]
        after = report_key((self._node + 1) % self._nodes)
        peeks = now - self._peeked_at >= BEAT_SECONDS
        if peeks:
            self._peeked_at = now
            self._reports = self._reports or self._store.check([after])
            keys += [after] if self._reports else []
        found = dict(zip(keys, map(text_of, self._store.multi_get(keys)), strict=True))
        self.known.server = names([0], read_report(found[report_key(0)]).ranks)
        if peeks:
            self.next = read_report(found.get(after, ""))
        known = [note.deadline for note in notes.values() if note.deadline is not None]
        told = self._time(found[DEADLINE])
        deadline = min(known if told is None else [*known, told], default=None)
        if deadline is not None and deadline != told:
            self._store.set(DEADLINE, repr(deadline))
        self.known.deadline, self.known.called = deadline, bool(found[CALL])
        self.known.seen = _number(found.get(CLIENTS, ""))
        self.known.looks = 1 + max(self.known.looks, *(note.looks for note in notes.values()))

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
            tell(f"a wrong value in the ranks' store is ignored: {DEADLINE} is {text[:40]!r}; who else has its port?")
        return None


def read_reports(store: dist.Store, nodes: Sequence[tuple[int, ...]]) -> dict[int, Note]:
    """What each node has told last of each of its ranks. Raises dist.DistError where the store is gone."""
    found: dict[int, Note] = {}
    for node, ranks in enumerate(nodes):
        key = report_key(node)
        told = read_report(text_of(store.get(key))) if store.check([key]) else NodeReport()
        found |= {rank: told.ranks.get(rank, Note()) for rank in ranks}
    return found


def report_key(node: int) -> str:
    """Under which a node's report lies in the store."""
    return f"watch/node/{node}"


def here_key(node: int) -> str:
    """Under which a node says that all of its ranks have answered."""
    return f"watch/here/{node}"


def text_of(value: bytes) -> str:
    """A value of the store, whoever wrote it."""
    return value.decode(errors="replace")


def _number(text: str) -> int | None:
    """A count that the ranks have made; None where a stranger has written something else there."""
    return int(text) if text.isdecimal() and len(text) < 19 else None
