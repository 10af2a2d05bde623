"""Signals only set a flag; the ranks agree on it in the round's sum and leave together, in time.

A batch system warns with SIGUSR1, SIGUSR2 or SIGTERM and kills some time later. Whoever is asked first tells the others
through the store (`cluster.watch`); each rank estimates whether its part of the round still fits the grace time and,
where it does not, contributes nothing but the word "abandoned". After the reduction all ranks know the same: the round
counts or it does not, and the run stops behind it.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from fedmef_dist.cluster.ending import INTERRUPTED, SIGNALS, ignore_signals
from fedmef_dist.cluster.transport import PeerLostError
from fedmef_dist.cluster.watch import Watch

_FAREWELL_SECONDS = 1.0
T = TypeVar("T")


class RoundAbandonedError(Exception):
    """The rest of the round does not fit the grace time."""


class Interruption:
    """Whether this process was asked to stop.

    Attributes:
        asked_at: Unix time of the first signal.
        over: set once the run has ended, whole or early, on all ranks: a second INT changes that no more.
    """

    def __init__(self) -> None:
        self.asked_at: float | None = None
        self.over = False

    def ask(self) -> None:
        """Asks; the first time counts."""
        if self.asked_at is None:
            self.asked_at = time.time()


@contextmanager
def listening(ends_process: bool = False) -> Iterator[Interruption]:
    """Lets USR1, USR2, TERM, INT and HUP set a flag while the body runs; handlers that were there are called too.

    A signal that was ignored stays so, and outside the main thread, where Python delivers no signals, all do nothing.
    A second INT raises KeyboardInterrupt.

    Args:
        ends_process: the process ends with the body. A second INT then ends it within a second, with status 130, even
            where the main thread is stuck in a collective; and from the end of the body on signals are ignored, so that
            none changes the status.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers = _Handlers(interruption)
    with _reading_wakeups(_Bell(interruption, ends_process)):
        handlers.install()
        try:
            yield interruption
        finally:
            if ends_process:
                ignore_signals()
            else:
                handlers.restore()


class _Handlers:
    """Python's handlers of the signals; they run in the main thread, between two of its instructions."""

    def __init__(self, interruption: Interruption) -> None:
        self.interruption, self.interrupts = interruption, 0
        self.before: dict[int, Any] = {}

    def install(self) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.getsignal(number)  # first: one that comes at once asks for it
                signal.signal(number, self)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.interruption.ask()
        before = self.before[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1 and number == signal.SIGINT and not self.interruption.over:
            raise KeyboardInterrupt


class _Bell:
    """Hears of signals at once, where the main thread is stuck in a collective and cannot run its handlers."""

    def __init__(self, interruption: Interruption, ends_process: bool) -> None:
        self.interruption, self.ends_process, self.interrupts = interruption, ends_process, 0

    def hear(self, number: int) -> None:
        if number not in SIGNALS:
            return
        self.interruption.ask()
        self.interrupts += number == signal.SIGINT
        if self.interrupts > 1 and self.ends_process:
            time.sleep(_FAREWELL_SECONDS)
            if not self.interruption.over:
                os._exit(INTERRUPTED)


@contextmanager
def _reading_wakeups(bell: _Bell) -> Iterator[None]:
    """Has the interpreter write the number of each signal into a socket, and a thread read it there."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def read() -> None:
        while numbers := reader.recv(64):
            if before != -1:
                with contextlib.suppress(OSError):
                    os.write(before, numbers)
            for number in numbers:
                bell.hear(number)

    thread = threading.Thread(target=read, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join(_FAREWELL_SECONDS)
        reader.close()


class GraceTime:
    """What is left of a run's time once somebody has asked it to stop, and whether this rank's work fits in.

    Args:
        seconds: from the signal until the run must have ended.
        interruption: this process's signals.
        watch: the other ranks'.
    """

    def __init__(self, seconds: float, interruption: Interruption, watch: Watch) -> None:
        self.seconds, self.interruption, self.watch = seconds, interruption, watch
        self._pace = _Pace()
        self._abandoned = False
        watch.own_deadline = self._own_deadline

    @property
    def asked(self) -> bool:
        """Whether this rank knows that the run has to stop."""
        return self._deadline() is not None

    def begin(self, samples: int) -> None:
        """A round starts, in which this rank trains so many samples. Raises as :meth:`check`.

        Once somebody has asked to stop, no round starts: nothing is lost with one that has not begun.
        """
        self._pace.begin(samples)
        if self.asked:
            self._abandon()
        self.check()

    def trained(self, samples: int) -> None:
        """One client with so many samples is done."""
        self._pace.trained(samples)

    def end(self) -> None:
        """The round is over, its evaluation and checkpoint included."""
        self.watch.progress.mark()
        self._pace.end()

    def check(self) -> None:
        """Called often by the main thread, which so shows that it gets on: goes on, or says why not.

        Raises:
            RoundAbandonedError: the rest of this rank's part of the round does not fit the grace time.
            PeerLostError: another rank is gone.
        """
        self.watch.progress.mark()
        if self.watch.lost is not None:
            raise PeerLostError(self.watch.lost)
        deadline = self._deadline()
        if deadline is not None and time.time() + self._pace.rest() > deadline:
            self._abandon()

    def _abandon(self) -> None:
        self._abandoned = True
        raise RoundAbandonedError

    def heed(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a check before each."""
        for item in items:
            self.check()
            yield item

    def _own_deadline(self) -> float | None:
        if self._abandoned:
            return 0.0  # what one rank leaves out, no other needs to finish
        asked = self.interruption.asked_at
        return None if asked is None else asked + self.seconds

    def _deadline(self) -> float | None:
        return min((time for time in (self._own_deadline(), self.watch.deadline) if time is not None), default=None)


class _Pace:
    """How long the rest of a round takes, from what was measured before: samples a second, and what follows training.

    Unknown, that is in a process's first round, counts as too long.
    """

    def __init__(self) -> None:
        self._samples, self._seconds, self._tail = 0, 0.0, float("inf")
        self._left, self._since = 0, 0.0

    def begin(self, samples: int) -> None:
        self._left, self._since = samples, time.monotonic()

    def trained(self, samples: int) -> None:
        now = time.monotonic()
        self._samples += samples
        self._seconds += now - self._since
        self._left -= samples
        self._since = now

    def end(self) -> None:
        tail = time.monotonic() - self._since
        self._tail = tail if self._tail == float("inf") else max(self._tail, tail)

    def rest(self) -> float:
        left = self._left * self._seconds / max(self._samples, 1) - (time.monotonic() - self._since)
        return max(left, 0.0) + self._tail
