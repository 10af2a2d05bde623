"""How long a run still takes, from how long its rounds took."""

import time
from collections import deque
from collections.abc import Callable

_ROUNDS = 20  # evaluated and adjusting rounds are among so many


class Pace:
    """Reads the clock where rounds end; each process has to learn its own pace.

    Args:
        total: rounds to do.
        done: those that are done already.
        clock: seconds, always forward.
    """

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done, self._clock = total, done, clock
        self._since = clock()
        self._seconds: deque[float] = deque(maxlen=_ROUNDS)

    def reach(self, round: int) -> None:
        """So many rounds are done."""
        now = self._clock()
        self._seconds.append(now - self._since)
        self._done, self._since = round, now

    def left(self, share: float = 0.0) -> float | None:
        """Seconds until the last round is done; None while nothing is known.

        ``share`` of the round that is going on is done, which counts in this process's first one.
        """
        spent = self._clock() - self._since
        if self._seconds:
            each = sum(self._seconds) / len(self._seconds)
        elif share > 0:
            each = spent / share
        else:
            return None
        return max(each * (self._total - self._done) - min(spent, each), 0.0)


def clock_text(seconds: float) -> str:
    """Hours, minutes and seconds: "0:01:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
