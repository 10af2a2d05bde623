"""How the ranks get on: marks of a rank's main thread, and the clients that all ranks together have trained.

A process that lives may still make no progress: a dead file server, a deadlock. Its watch's
thread goes on to beat, so only the main thread can tell; it counts, which costs next to nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import NamedTuple, TypeVar

# A rank has stuck where its mark stands still for longer than both: seconds, and times its longest step so far.
STUCK_SECONDS, STUCK_STEPS = 300.0, 20.0
T = TypeVar("T")


class Mark(NamedTuple):
    """What a rank publishes of its progress: steps done, which must move, and its longest one so far in seconds."""

    steps: int
    longest: float


class Progress:
    """The marks of this process's main thread.

    Args:
        clock: seconds, always forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since = clock, clock()
        self._steps, self._longest, self._expected = 0, 0.0, False

    def mark(self) -> None:
        """One step more is done: a batch, a client, a phase of the round."""
        now = self._clock()
        self._longest = max(self._longest, now - self._since)
        self._since = now
        self._steps += 1

    def through(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a mark before each."""
        for item in items:
            self.mark()
            yield item

    def waited(self) -> None:
        """A wait for other ranks is over, which was no step of this one."""
        self._since = self._clock()
        self._steps += 1

    @contextmanager
    def expected(self) -> Iterator[None]:
        """While the body runs, marks must move; before and after it downloads and uploads may take their time."""
        self.waited()
        self._expected = True
        try:
            yield
        finally:
            self._expected = False

    def text(self, waiting: bool) -> str:
        """What to publish; empty where the mark need not move, for example where this rank waits for others."""
        return f"{self._steps} {self._longest:.3f}" if self._expected and not waiting else ""


class CohortProgress:
    """How many clients of the round's cohort are trained: this rank's count, and what it has seen of all ranks' sum.

    The counts run on from round to round, so that one number in the ranks' store is enough for all of them.

    Attributes:
        round: the one that is being trained; 0 before the first.
        clients: of its cohort, over all ranks.
        own: those of this rank, of all rounds.
        seen: of all rounds and ranks, as the store had it last; None without one.
    """

    def __init__(self) -> None:
        self.round, self.clients = 0, 0
        self.seen: int | None = None
        self.own = self._before = 0

    def begin(self, round: int, clients: int) -> None:
        """A round starts, in which the ranks together train so many clients; those of the one before are all done."""
        self._before += self.clients
        self.round, self.clients = round, clients

    def trained(self) -> None:
        """One more client of this rank is done."""
        self.own += 1

    @property
    def done(self) -> int:
        """Clients of this round that are trained, over all ranks as far as that is known."""
        trained = self.own if self.seen is None else self.seen
        return min(max(trained - self._before, 0), self.clients)


def read_mark(text: str) -> Mark | None:
    """The mark that a rank has published; None where there is none, or something that no rank writes."""
    steps, _, longest = text.partition(" ")
    try:
        mark = Mark(int(steps), float(longest))
    except ValueError:
        return None
    return mark if isfinite(mark.longest) else None


def patience(longest: float, least: float = STUCK_SECONDS) -> float:
    """Seconds for which a mark may stand still, for a rank whose longest step took ``longest`` seconds."""
    return max(least, STUCK_STEPS * longest)
