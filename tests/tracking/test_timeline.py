import json
import resource
import time

import pytest

from fedmef_dist.tracking.timeline import Phases, Timeline, read_timelines


def phases():
    """Those of a round: when each began and ended, in seconds."""
    found = Phases()
    found.spans = {
        "train": (10.0, 12.0),
        "wait": (12.0, 12.5),
        "reduce": (12.5, 12.75),
        "adjust": (12.75, 13.0),
        "eval": (13.0, 15.0),
    }
    return found


def test_phases_follow_one_another_and_are_the_rounds_metrics():
    assert Timeline(None, 0).phases(1, phases()) == {
        "time/train": 2.0,
        "time/wait": 0.5,
        "time/reduce": 0.25,
        "time/adjust": 0.25,
        "time/eval": 2.0,
    }


def test_a_phase_begins_where_the_one_before_ended_and_can_be_split(monkeypatch):
    now = iter([10.0, 12.0, 12.75, 13.0])
    monkeypatch.setattr("fedmef_dist.tracking.timeline.time.perf_counter", lambda: next(now))
    found = Phases()
    for name in ("train", "reduce", "adjust"):
        with found.measure(name):
            pass
    assert found.spans == {"train": (10.0, 12.0), "reduce": (12.0, 12.75), "adjust": (12.75, 13.0)}
    assert found.seconds == 3.0
    found.split("reduce", "wait", 0.5)
    assert (found.spans["wait"], found.spans["reduce"]) == ((12.0, 12.5), (12.5, 12.75))
    # A phase has no longer part than itself.
    found.split("adjust", "rest", 9.0)
    assert (found.spans["rest"], found.spans["adjust"]) == ((12.75, 13.0), (13.0, 13.0))
    assert found.seconds == 3.0


def test_what_fails_in_a_phase_is_no_span():
    found = Phases()
    with pytest.raises(KeyError), found.measure("train"):
        raise KeyError
    assert found.spans == {}


def test_spans_stand_on_the_wall_clock_in_microseconds(tmp_path):
    before = time.time() - time.perf_counter()
    timeline = Timeline(tmp_path, 3)
    timeline.add("client 5", 10.5, 11.0, round=1, samples=7)
    timeline.phases(1, phases())
    name, client, *spans, memory = read_timelines(tmp_path)
    assert name["ph"] == "M"
    assert name["args"]["name"].startswith("rank 3 on ")
    assert client["ts"] == pytest.approx((before + 10.5) * 1e6, abs=1e5)
    assert (client["dur"], client["pid"], client["args"]) == (500_000, 3, {"round": 1, "samples": 7})
    assert [event["name"] for event in spans] == ["train", "wait", "reduce", "adjust", "eval"]
    assert spans[1]["ts"] - spans[0]["ts"] == 2_000_000
    assert memory["ph"] == "C"
    assert memory["args"]["bytes"] > 10e6  # an interpreter with torch holds more


def test_the_file_is_a_trace_at_any_moment_and_grows_when_a_run_goes_on(tmp_path):
    for number in (1, 2):
        Timeline(tmp_path, 0).phases(number, phases())
        text = (tmp_path / "timeline" / "rank-000.json").read_text()
        # Chrome's format allows the missing bracket, and nothing else, behind the last comma.
        assert len(json.loads(text.rstrip().rstrip(",") + "]")) == 7 * number
    assert text.count("[") == 1


def test_ranks_are_read_together(tmp_path):
    for rank in (1, 0):
        Timeline(tmp_path, rank).phases(1, phases())
    assert [event["pid"] for event in read_timelines(tmp_path) if event["ph"] == "M"] == [0, 1]


def test_without_a_run_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timeline = Timeline(None, 0)
    timeline.add("x", 0, 1)
    timeline.phases(1, phases())
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "timeline").write_text("")
    timeline = Timeline(tmp_path, 0)
    for number in (1, 2):
        timeline.phases(number, phases())
    shown = capsys.readouterr().err
    assert shown.count("the timeline cannot be written") == 1
    assert str(tmp_path / "timeline" / "rank-000.json") in shown


def test_a_full_disk_leaves_no_half_line_to_go_on_behind(tmp_path, capsys):
    Timeline(tmp_path, 0).phases(1, phases())
    path = tmp_path / "timeline" / "rank-000.json"
    written = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(written) + 100, limits[1]))
    try:
        Timeline(tmp_path, 0).phases(2, phases())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == written
    assert "the timeline cannot be written: No space left" in capsys.readouterr().err
    Timeline(tmp_path, 0).phases(3, phases())
    assert len(read_timelines(tmp_path)) == 2 * 7
