"""Progress for people: a bar on a terminal or in a notebook, plain lines in a log file."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from fedmef_dist.cluster.progress import CohortProgress
from fedmef_dist.tracking.pace import Pace, clock_text
from fedmef_dist.tracking.tracker import Metrics, Tracker

_SILENCE = 30.0  # seconds after which a round that was not evaluated gets its line too, and so does half of one
_LOOKS_A_SECOND = 4
_LEAST_BAR = 4  # characters of a progress bar on a narrow terminal
_DISPENSABLE = ("time/round", "train/loss", "eval/perplexity", "eval/accuracy")  # there, in this order


def console_tracker(
    total_rounds: int,
    resume_round: int | None,
    cohort: CohortProgress | None = None,
    opening: Sequence[str] = (),
    stream: TextIO | None = None,
) -> Tracker:
    """What suits ``stream`` (standard output): a bar on a terminal, a live line in a notebook, else plain lines.

    Args:
        total_rounds: of the run.
        resume_round: the last one that is done already.
        cohort: what is known of the round that is going on.
        opening: lines to show first.
        stream: where to.
    """
    shown = stream or sys.stdout
    for line in opening:
        print(line, file=shown, flush=True)
    view = View(total_rounds, resume_round or 0, cohort or CohortProgress())
    if stream is None and _in_notebook():
        return NotebookTracker(view)
    return BarTracker(view, shown) if shown.isatty() else LineTracker(view, shown)


class View:
    """What there is to show: rounds, the newest metrics, the clients of the round that is going on, the time left.

    Args:
        total: rounds of the run.
        done: those that are done already.
        cohort: of the round that is going on.
        clock: seconds, always forward.
    """

    def __init__(
        self, total: int, done: int, cohort: CohortProgress, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.done, self.clock = total, done, clock
        self._cohort, self._pace = cohort, Pace(total, done, clock)
        self.newest: Metrics = {}

    def log(self, metrics: Metrics) -> None:
        """Take a round's metrics; an accuracy stays until the next evaluation."""
        accuracy = {key: self.newest[key] for key in ("eval/accuracy",) if key in self.newest}
        self.newest = {**accuracy, **metrics}
        self.done = int(metrics["round"])
        self._pace.reach(self.done)

    @property
    def clients(self) -> str:
        """How far the round is that is going on: "12/40 clients"; empty between two rounds."""
        cohort = self._cohort
        return f"{cohort.done}/{cohort.clients} clients" if cohort.round > self.done else ""

    @property
    def left(self) -> str:
        """The time left: "0:01:05 left"; empty while it is not known, and at the end."""
        cohort = self._cohort
        if self.done == self.total:
            return ""
        seconds = self._pace.left(cohort.done / cohort.clients if cohort.round > self.done and cohort.clients else 0.0)
        return "" if seconds is None else f"{clock_text(seconds)} left"


class LineTracker(Tracker):
    """One line for each evaluated round, for the first one seen, and whenever half a minute passed in silence.

    Such a line in the middle of a round tells the clients that are trained. A thread looks whether it is due.
    """

    def __init__(self, view: View, stream: TextIO) -> None:
        self._view, self._stream = view, stream
        self._is_first, self._last = True, view.clock()
        self._lock = threading.Lock()
        self._ticker = Ticker(self.break_silence, 1.0)
        self._ticker.start()

    def log(self, metrics: Metrics) -> None:
        """Print the round if it is due."""
        self._view.log(metrics)
        if "eval/accuracy" in metrics or self._is_first or self._is_due():
            self._print(self._view.done, describe(metrics), self._view.left)
        self._is_first = False

    def break_silence(self) -> None:
        """Print how far the round is that is going on, if nothing was printed for long."""
        if self._is_due() and self._view.clients:
            self._print(self._view.done + 1, [self._view.clients], self._view.left)

    def close(self) -> None:
        """Stop looking."""
        self._ticker.stop()

    def _is_due(self) -> bool:
        return self._view.clock() - self._last >= _SILENCE

    def _print(self, round: int, parts: Sequence[str], left: str) -> None:
        total = self._view.total
        line = "  ".join([f"round {round:>{len(str(total))}}/{total}", *parts, *([left] if left else [])])
        with self._lock:
            print(line, file=self._stream, flush=True)
            self._last = self._view.clock()


class BarTracker(Tracker):
    """A progress bar with the newest loss, accuracy and seconds a round, the round's clients and the time left.

    A narrow terminal gets as many of them as it has room for.
    """

    def __init__(self, view: View, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self._view = view
        console = Console(file=stream)
        taken = len("round ") + 2 * len(str(view.total)) + len("/ ") + _LEAST_BAR + len(" ")
        self._progress = Progress(
            TextColumn("round"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            refresh_per_second=_LOOKS_A_SECOND,
        )
        text = _Text(lambda: fitting(view, console.width - taken))
        self._task = self._progress.add_task("rounds", total=view.total, completed=view.done, text=text)
        self._progress.start()

    def log(self, metrics: Metrics) -> None:
        """Move the bar to the round."""
        self._view.log(metrics)
        self._progress.update(self._task, completed=self._view.done)

    def close(self) -> None:
        """Stop drawing and give the terminal back."""
        self._progress.stop()


class _Text:
    """A text that is made anew each time it is shown."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make

    def __str__(self) -> str:
        return self._make()


def fitting(view: View, room: int) -> str:
    """What there is to show in one text of at most ``room`` characters: where that is little, fewer numbers."""
    metrics, rest = dict(view.newest), [part for part in (view.clients, view.left) if part]
    text = "  ".join([*describe(metrics), *rest])
    for key in _DISPENSABLE:
        if len(text) <= room:
            break
        metrics.pop(key, None)
        text = "  ".join([*describe(metrics), *rest])
    return text


class NotebookTracker(Tracker):
    """The same as one line of HTML, which the notebook replaces in its place."""

    def __init__(self, view: View) -> None:
        from IPython.display import HTML, display

        self._view, self._html = view, HTML
        self._handle = display(HTML(self._text()), display_id=True)
        self._ticker = Ticker(self._show, 1 / _LOOKS_A_SECOND)
        self._ticker.start()

    def log(self, metrics: Metrics) -> None:
        """Move the bar to the round."""
        self._view.log(metrics)
        self._show()

    def close(self) -> None:
        """Show the last state and stop."""
        self._ticker.stop()
        self._show()

    def _show(self) -> None:
        self._handle.update(self._html(self._text()))

    def _text(self) -> str:
        view = self._view
        parts = [f"round {view.done}/{view.total}", *describe(view.newest), view.clients, view.left]
        return f'<progress value="{view.done}" max="{view.total}"></progress> {" · ".join(filter(None, parts))}'


class Ticker:
    """A thread that does something again and again until it is stopped; what it cannot show it leaves out.

    Args:
        act: what to do.
        seconds: between two times.
    """

    def __init__(self, act: Callable[[], None], seconds: float) -> None:
        self._act, self._seconds = act, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, within a moment."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _work(self) -> None:
        while not self._stopped.wait(self._seconds):
            try:
                self._act()
            except OSError:  # a closed pipe or a full disk: the next round's line says so
                return


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


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")
