"""Progress for people: a bar on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from fedmef_dist.tracking.tracker import Metrics, Tracker

_SILENCE = 30.0  # seconds after which a round that was not evaluated gets its line too


def console_tracker(total_rounds: int, resume_round: int | None, stream: TextIO | None = None) -> Tracker:
    """The bar where ``stream`` (standard output) is a terminal, otherwise one plain line an evaluated round."""
    stream = stream or sys.stdout
    if stream.isatty():
        return BarTracker(total_rounds, resume_round or 0, stream)
    return LineTracker(total_rounds, stream)


class LineTracker(Tracker):
    """One line for each evaluated round, for the first one seen, and whenever half a minute passed in silence."""

    def __init__(self, total_rounds: int, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total_rounds
        self._stream = stream
        self._clock = clock
        self._last = -float("inf")

    def log(self, metrics: Metrics) -> None:
        """Print the round if it is due."""
        now = self._clock()
        if "eval/accuracy" in metrics or now - self._last >= _SILENCE:
            parts = [f"round {metrics['round']:>{len(str(self._total))}}/{self._total}", *describe(metrics)]
            print("  ".join(parts), file=self._stream, flush=True)
            self._last = now


class BarTracker(Tracker):
    """A progress bar with the newest loss, accuracy and seconds a round."""

    def __init__(self, total_rounds: int, done: int, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[newest]}"),
            TimeRemainingColumn(),
            console=Console(file=stream),
        )
        self._task = self._progress.add_task("rounds", total=total_rounds, completed=done, newest="")
        self._shown: dict[str, float | int | str] = {}
        self._progress.start()

    def log(self, metrics: Metrics) -> None:
        """Move the bar to the round; an accuracy stays until the next evaluation."""
        accuracy = {key: self._shown[key] for key in ("eval/accuracy",) if key in self._shown}
        self._shown = {**accuracy, **metrics}
        self._progress.update(self._task, completed=int(metrics["round"]), newest="  ".join(describe(self._shown)))

    def close(self) -> None:
        """Stop drawing and give the terminal back."""
        self._progress.stop()


def describe(metrics: Metrics) -> list[str]:
    """The handful of numbers that a person watches, each as a short text; what was not measured is left out."""
    formats: tuple[tuple[str, Callable[[Any], str]], ...] = (
        ("train/loss", lambda value: f"loss {value:.4f}"),
        ("eval/accuracy", lambda value: f"accuracy {100 * value:.2f} %"),
        ("eval/perplexity", lambda value: f"perplexity {value:.3f}"),
        ("time/round", lambda value: f"{value:.2f} s"),
        ("clients/refused", lambda value: f"{value} refused" if value else ""),
        ("clients/dropped", lambda value: f"{value} dropped" if value else ""),
    )
    return [text for key, show in formats if key in metrics and (text := show(metrics[key]))]
