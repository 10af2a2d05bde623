"""Trackers from outside of the package. Whatever goes wrong in one is said in one line and never hurts the run."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import GuestSettings, Kind, call, find
from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.tracker import Metrics, Tracker

_KEY = "tracking.trackers"
# Less than the time after which other ranks take a rank that does not get on for stuck.
_PATIENCE_SECONDS = 240.0


class GuestTracker(Tracker):
    """A guest behind a guard: after its first exception it is left out, of :meth:`finish` and :meth:`close` too.

    A call that takes four minutes gets a TimeoutError.

    Args:
        name: of the guest, for its notice.
        tracker: an object with ``log``, and any of ``finish``, ``saved``, ``close``, ``state`` and ``restore``.
        prefix: of its keys in the state of all trackers.
    """

    def __init__(self, name: str, tracker: Any, prefix: str) -> None:
        self._name, self._prefix = name, prefix
        self._tracker: Any = tracker

    def log(self, metrics: Metrics) -> None:
        """Hand it a copy of the round's metrics."""
        self._ask("log", dict(metrics))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand it a copy of the summary."""
        self._ask("finish", dict(summary))

    def saved(self, folder: Path) -> None:
        """Tell it of a checkpoint."""
        self._ask("saved", folder)

    def close(self) -> None:
        """Close it."""
        self._ask("close")

    def state(self) -> dict[str, str]:
        """Its state, with its prefix before each key; nothing where it is left out."""
        state = self._ask("state") or {}
        try:
            if any(not isinstance(text, str) for pair in state.items() for text in pair):
                raise TypeError("state() gives words under words")
            "".join(text for pair in state.items() for text in pair).encode()  # a file must be able to hold them
            return {self._prefix + key: value for key, value in state.items()}
        except Exception as error:
            self.leave_out("state", error)
            return {}

    def restore(self, state: Mapping[str, str]) -> None:
        """Give it back its part of the state of all trackers, where it has a method ``restore``."""
        own = {key.removeprefix(self._prefix): value for key, value in state.items() if key.startswith(self._prefix)}
        self._ask("restore", own)

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._tracker is None or not hasattr(self._tracker, method):
            return None
        try:
            with _limited():
                return getattr(self._tracker, method)(*arguments)
        except (Exception, SystemExit) as error:
            self.leave_out(method, error)

    def leave_out(self, method: str, error: Exception | SystemExit) -> None:
        """Say in one line what failed, and go on without it."""
        reason = " ".join(str(error).split())[:200]
        tell(f"tracker {self._name} failed in {method}: {type(error).__name__}: {reason}; the run goes on without it")
        self._tracker = None


@contextmanager
def _limited() -> Iterator[None]:
    """Raises TimeoutError in a body that does not end, so that a server that never answers holds up no run.

    Only the main thread can be interrupted, and not where the program has set the alarm for itself.
    """
    if threading.current_thread() is not threading.main_thread() or any(signal.getitimer(signal.ITIMER_REAL)):
        yield
        return

    def ring(*_: Any) -> None:
        raise TimeoutError(f"it has not ended within {_PATIENCE_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)


def guarded(name: str, make: Callable[[], Tracker]) -> GuestTracker:
    """One of the package's own behind the same guard, that writes through somebody else's library."""
    try:
        return GuestTracker(name, make(), f"{name}/")
    except Exception as error:
        left_out = GuestTracker(name, None, f"{name}/")
        left_out.leave_out("start", error)
        return left_out


def find_trackers(settings: Sequence[GuestSettings]) -> None:
    """Makes sure that each can be imported. Raises UserError."""
    for tracker in settings:
        find(Kind.TRACKER, tracker.name, _KEY)


def open_guests(
    settings: Sequence[GuestSettings], run_dir: Path, config: Mapping[str, Any], state: Mapping[str, str] | None
) -> Iterator[Tracker]:
    """The guests among a run's trackers one by one, each made as ``Name(run_dir=..., config=..., **options)``.

    ``state`` is what a checkpoint kept of all trackers; None: a fresh run. One that raises an exception when it is made
    is left out. Raises UserError where one is missing, does not take its options or has no ``log``.
    """
    names = [tracker.name for tracker in settings]
    for place, guest in enumerate(settings):
        tracker = _make(guest, run_dir, config)
        if tracker is not None:
            number = names[:place].count(guest.name)
            guarded = GuestTracker(guest.name, tracker, f"{guest.name}#{number}/")
            if state is not None:
                guarded.restore(state)
            yield guarded


def _make(guest: GuestSettings, run_dir: Path, config: Mapping[str, Any]) -> Any:
    found = find(Kind.TRACKER, guest.name, _KEY)
    try:
        with _limited():
            tracker = call(guest.name, found, _KEY, guest.options, {"run_dir": run_dir, "config": dict(config)})
    except UserError as error:
        if error.__cause__ is None:  # its name or its options are wrong: that is better known at once
            raise
        tell(f"{error.what}; where: {error.where}; the run goes on without it")
        return None
    if not callable(getattr(tracker, "log", None)):
        raise UserError(f"{guest.name} has no method log", where=_KEY, mend="see fedmef_dist.api.Tracker")
    return tracker
