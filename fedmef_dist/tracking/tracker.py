"""What every tracker can do, and several of them as one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fedmef_dist.base.notices import tell

Metrics = dict[str, float | int | str]


class Tracker(Protocol):
    """Receives what a run measures, on rank 0. A subclass defines :meth:`log`, and of the others what it needs."""

    @abstractmethod
    def log(self, metrics: Metrics) -> None:
        """Take one round's metrics; they hold ``round``. Called once a round, as the round ends."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Take the summary of a run that has reached its last round."""
        return None

    def saved(self, folder: Path) -> None:
        """A checkpoint was written; its files may be gone when a newer one has come, so copy what is needed."""
        return None

    def close(self) -> None:
        """Let go of files, bars and threads; called once, also where the run stopped early."""
        return None

    def state(self) -> dict[str, str]:
        """What a checkpoint must keep, so that a resumed run goes on under the same identity."""
        return {}


class Trackers(Tracker):
    """Several trackers as one. One that cannot write (a full disk, a closed pipe) is closed and left out."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def log(self, metrics: Metrics) -> None:
        """Hand the round to each, in the order given."""
        for tracker in tuple(self._trackers):
            try:
                tracker.log(metrics)
            except OSError as error:
                tell(f"{type(tracker).__name__} stopped: {error.strerror}; the run goes on")
                self._trackers.remove(tracker)
                with suppress(OSError):  # what it cannot write was said just now; its threads end
                    tracker.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Hand the summary to each."""
        for tracker in self._trackers:
            tracker.finish(summary)

    def saved(self, folder: Path) -> None:
        """Tell each of the checkpoint."""
        for tracker in self._trackers:
            tracker.saved(folder)

    def close(self) -> None:
        """Close each, the last opened first, also behind one whose place is gone: a terminal that was closed."""
        for tracker in reversed(self._trackers):
            try:
                tracker.close()
            except OSError as error:
                tell(f"{type(tracker).__name__} could not be closed: {error.strerror}")

    def state(self) -> dict[str, str]:
        """All their states together; their keys do not clash."""
        return {key: value for tracker in self._trackers for key, value in tracker.state().items()}
