import io
import sys
import types

import pytest

from fedmef_dist.cluster.progress import CohortProgress
from fedmef_dist.tracking.console import BarTracker, LineTracker, NotebookTracker, View, console_tracker, describe


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def view(total, done=0, clock=None, cohort=None):
    return View(total, done, cohort or CohortProgress(), clock or Clock())


def test_the_stream_decides_between_bar_and_lines():
    lines = console_tracker(5, None, stream=io.StringIO())
    bar = console_tracker(5, 2, stream=Terminal())
    assert isinstance(lines, LineTracker)
    assert isinstance(bar, BarTracker)
    lines.close()
    bar.close()


def test_what_a_run_says_first_comes_first():
    stream = io.StringIO()
    tracker = console_tracker(5, None, opening=["what", "where"], stream=stream)
    tracker.log({"round": 1})
    tracker.close()
    assert stream.getvalue().splitlines() == ["what", "where", "round 1/5  0:00:00 left"]


def test_evaluated_rounds_get_a_plain_line(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream, clock = io.StringIO(), Clock()
    tracker = LineTracker(view(100, clock=clock), stream)
    for clock.now, metrics in (
        (1.0, {"round": 1, "train/loss": 2.30259, "time/round": 1.234}),
        (2.0, {"round": 2, "train/loss": 2.0}),
        (3.0, {"round": 3, "train/loss": 0.5, "eval/accuracy": 0.9123, "time/round": 1.2, "clients/refused": 0}),
    ):
        tracker.log(metrics)
    tracker.finish({})
    tracker.close()
    assert stream.getvalue().splitlines() == [
        "round   1/100  loss 2.3026  1.23 s  0:01:39 left",
        "round   3/100  loss 0.5000  accuracy 91.23 %  1.20 s  0:01:37 left",
    ]


def test_long_silence_is_broken():
    clock, stream = Clock(), io.StringIO()
    tracker = LineTracker(view(9, clock=clock), stream)
    for number, clock.now in enumerate((0.0, 29.0, 31.0, 60.0, 61.5), start=1):
        tracker.log({"round": number})
    tracker.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/9", "3/9", "5/9"]


def test_a_long_round_tells_its_clients_and_the_time_left():
    clock, stream, cohort = Clock(), io.StringIO(), CohortProgress()
    tracker = LineTracker(view(10, clock=clock, cohort=cohort), stream)
    cohort.begin(1, 4)
    clock.now = 20.0
    cohort.trained()
    tracker.break_silence()
    clock.now = 40.0
    tracker.break_silence()
    clock.now = 41.0
    tracker.break_silence()
    tracker.close()
    assert stream.getvalue().splitlines() == ["round  1/10  1/4 clients  0:26:00 left"]


def test_between_two_rounds_nobody_trains():
    clock, cohort = Clock(), CohortProgress()
    shown = view(10, clock=clock, cohort=cohort)
    assert (shown.clients, shown.left) == ("", "")
    cohort.begin(1, 2)
    cohort.trained()
    cohort.trained()
    assert shown.clients == "2/2 clients"
    clock.now = 60.0
    shown.log({"round": 1})
    assert (shown.clients, shown.left) == ("", "0:09:00 left")
    cohort.begin(2, 3)
    assert shown.clients == "0/3 clients"


def test_refused_and_dropped_clients_are_said_only_when_there_are_some():
    assert describe({"round": 1, "clients/refused": 0, "clients/dropped": 2}) == ["2 dropped"]
    assert describe({"round": 1, "clients/refused": 1, "clients/dropped": 0}) == ["1 refused"]


def test_the_bar_keeps_the_last_accuracy_and_ends_at_the_newest_round(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, cohort = Terminal(), CohortProgress()
    tracker = BarTracker(view(20, 3, cohort=cohort), stream)
    tracker.log({"round": 4, "train/loss": 0.5, "eval/accuracy": 0.75})
    tracker.log({"round": 5, "train/loss": 0.25})
    cohort.begin(6, 8)
    tracker.close()
    last = stream.getvalue().split("\r")[-1]
    for part in ("5/20", "loss 0.2500", "accuracy 75.00 %", "0/8 clients", "left"):
        assert part in last


@pytest.mark.parametrize("columns", [50, 62, 75, 100])
def test_a_narrow_terminal_shows_fewer_numbers_and_cuts_none(monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, cohort = Terminal(), CohortProgress()
    tracker = BarTracker(view(100, 20, cohort=cohort), stream)
    tracker.log({"round": 21, "train/loss": 0.5, "eval/accuracy": 0.75, "time/round": 1.25})
    cohort.begin(22, 5)
    tracker.close()
    last = stream.getvalue().split("\r")[-1]
    assert "…" not in last
    assert all(part in last for part in (" 21/100", "0/5 clients", "left"))
    assert [part in last for part in ("accuracy 75.00 %", "loss 0.5000", "1.25 s")] == [
        columns > 60,
        columns > 70,
        columns > 90,
    ]


def test_a_notebook_has_one_line_that_changes(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=shown.append)
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, lambda html, display_id: shown.append(html) or handle
    kernel = types.ModuleType("IPython")
    kernel.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    tracker = console_tracker(5, None)
    assert isinstance(tracker, NotebookTracker)
    tracker.log({"round": 2, "train/loss": 0.25, "eval/accuracy": 0.5})
    tracker.close()
    assert shown[0] == '<progress value="0" max="5"></progress> round 0/5'
    assert shown[-1].startswith('<progress value="2" max="5"></progress> round 2/5 · loss 0.2500 · accuracy 50.00 % · ')


@pytest.mark.parametrize(("own", "seen", "done"), [(3, None, 3), (3, 7, 7), (3, 99, 10), (0, 0, 0)])
def test_a_cohort_counts_what_is_known_of_all_ranks(own, seen, done):
    cohort = CohortProgress()
    cohort.begin(1, 10)
    for _ in range(own):
        cohort.trained()
    cohort.seen = seen
    assert cohort.done == done
    assert cohort.own == own
    cohort.begin(2, 5)
    assert cohort.done == min(max((seen or 0) - 10, 0), 5)
