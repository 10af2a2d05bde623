import io

from fedmef_dist.tracking.console import BarTracker, LineTracker, console_tracker, describe


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_stream_decides_between_bar_and_lines(monkeypatch):
    assert isinstance(console_tracker(5, None, io.StringIO()), LineTracker)
    bar = console_tracker(5, 2, Terminal())
    assert isinstance(bar, BarTracker)
    bar.close()


def test_evaluated_rounds_get_a_plain_line(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    tracker = LineTracker(100, stream, clock=lambda: 0.0)
    tracker.log({"round": 1, "train/loss": 2.30259, "time/round": 1.234})
    tracker.log({"round": 2, "train/loss": 2.0})
    tracker.log({"round": 10, "train/loss": 0.5, "eval/accuracy": 0.9123, "time/round": 1.2, "clients/refused": 0})
    tracker.finish({})
    tracker.close()
    assert stream.getvalue().splitlines() == [
        "round   1/100  loss 2.3026  1.23 s",
        "round  10/100  loss 0.5000  accuracy 91.23 %  1.20 s",
    ]


def test_long_silence_is_broken():
    now = [0.0]
    stream = io.StringIO()
    tracker = LineTracker(9, stream, clock=lambda: now[0])
    for number, now[0] in enumerate((0.0, 29.0, 31.0, 60.0, 61.5), start=1):
        tracker.log({"round": number})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/9", "3/9", "5/9"]


def test_refused_and_dropped_clients_are_said_only_when_there_are_some():
    assert describe({"round": 1, "clients/refused": 0, "clients/dropped": 2}) == ["2 dropped"]
    assert describe({"round": 1, "clients/refused": 1, "clients/dropped": 0}) == ["1 refused"]


def test_the_bar_keeps_the_last_accuracy_and_ends_at_the_newest_round(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    tracker = BarTracker(20, 3, stream)
    tracker.log({"round": 4, "train/loss": 0.5, "eval/accuracy": 0.75})
    tracker.log({"round": 5, "train/loss": 0.25})
    tracker.close()
    last = stream.getvalue().split("\r")[-1]
    assert "5/20" in last
    assert "loss 0.2500" in last
    assert "accuracy 75.00 %" in last
