"""Notices that a rank or the store has hung, while this rank's main thread waits for it inside a collective.

A rank that trains long is not hung: its guard's thread goes on to beat, and its main thread to leave marks. Each rank
looks after the next one of its node, and one rank of each node after the next node, so that next to every rank that has
hung, or a whole node of them, somebody notices.
"""

import threading
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

from fedmef_dist.cluster.progress import STUCK_SECONDS, Mark, patience

# A stopped process, a swapped-out or frozen node; Python's lock is never held so long.
HUNG_SECONDS = 20.0
# Time for the main thread to leave by itself, and to say why.
_FAREWELL_SECONDS = 20.0
_CHECK_SECONDS = 0.5
Cause = Literal["store", "neighbour", "stuck", "node", "stuck node", "lost"]


class SignsOfLife(NamedTuple):
    """What changes while all is well, as this rank sees it.

    ``looks``: how often the store has answered. ``beat``: of the next rank; None once it has left. ``lost``: why the
    run cannot go on, if it cannot. ``mark``: of the next rank's main thread; None where it need not move, or this rank
    does not wait for it. ``least``: seconds for which any mark may stand still. ``node_beat``, ``node_mark``: of the
    next node, None also where another rank looks after it.
    """

    looks: int
    beat: str | None
    lost: str | None
    mark: Mark | None = None
    least: float = STUCK_SECONDS
    node_beat: str | None = None
    node_mark: Mark | None = None


class Silence:
    """For how long something has stayed the same, without the time in which this process itself did not run."""

    def __init__(self) -> None:
        self._seen: object = object()
        self._seconds, self._looked_at = 0.0, time.monotonic()

    def look(self, seen: object) -> float:
        """Seconds since the value last changed."""
        now = time.monotonic()
        # Looks come twice a second: where more has passed, this process was stopped too, or had no processor.
        passed, self._looked_at = min(now - self._looked_at, 2 * _CHECK_SECONDS), now
        self._seconds = self._seconds + passed if seen == self._seen else 0.0
        self._seen = seen
        return self._seconds


class Guard:
    """A thread that asks for the signs twice a second and calls ``end`` once, with what has hung."""

    def __init__(self, signs: Callable[[], SignsOfLife], end: Callable[[Cause], None]) -> None:
        self._signs, self._end = signs, end
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="guard", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._closing.set()

    def _look(self) -> None:
        verdict = Verdict()
        while not self._closing.wait(_CHECK_SECONDS):
            cause = verdict.look(self._signs())
            if cause is not None:
                self._end(cause)
                return


class Verdict:
    """What has hung, from signs that come twice a second."""

    def __init__(self) -> None:
        self._store, self._lost = Silence(), Silence()
        self._neighbour, self._stuck, self._node, self._stuck_node = Silence(), Silence(), Silence(), Silence()

    def look(self, signs: SignsOfLife) -> Cause | None:
        """The cause, once it is certain."""
        unanswered = self._store.look(signs.looks)
        if signs.lost is not None:
            return "lost" if self._lost.look(signs.lost) > _FAREWELL_SECONDS else None
        if unanswered > HUNG_SECONDS / 4:  # a store that does not answer has no news of the next node either
            return "store" if unanswered > HUNG_SECONDS else None
        found: list[tuple[Cause, bool]] = [
            ("neighbour", _is_silent(signs.beat, self._neighbour)),
            ("node", _is_silent(signs.node_beat, self._node)),
            ("stuck", _is_stuck(signs.mark, self._stuck, signs.least)),
            ("stuck node", _is_stuck(signs.node_mark, self._stuck_node, signs.least)),
        ]
        return next((cause for cause, is_certain in found if is_certain), None)


def _is_silent(beat: str | None, silence: Silence) -> bool:
    return beat is not None and silence.look(beat) > HUNG_SECONDS


def _is_stuck(mark: Mark | None, silence: Silence, least: float) -> bool:
    still = silence.look(mark)
    return mark is not None and still > patience(mark.longest, least)
