import json
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking import jsonl
from fedmef_dist.tracking.console import LineTracker
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.tracker import Trackers


def run_rounds(path, first, last, resume_round):
    tracker = JsonlTracker(path, resume_round)
    for number in range(first, last + 1):
        tracker.log({"round": number, "train/loss": 1 / number})
    tracker.close()


def test_a_round_is_on_disk_before_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1, "train/loss": 0.5, "model/digest": "ab"})
    assert path.read_text() == '{"round": 1, "train/loss": 0.5, "model/digest": "ab"}\n'
    tracker.log({"round": 2})
    assert path.read_text().splitlines()[1] == '{"round": 2}'
    tracker.close()


def test_what_is_not_finite_stays_valid_json(tmp_path):
    tracker = JsonlTracker(tmp_path / "m", None)
    tracker.log({"round": 1, "train/loss": float("nan"), "eval/loss": float("-inf"), "eval/accuracy": 0.5})
    tracker.close()
    line = json.loads((tmp_path / "m").read_text())
    assert line == {"round": 1, "train/loss": None, "eval/loss": None, "eval/accuracy": 0.5}


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    run_rounds(tmp_path / "m", 1, 3, None)
    run_rounds(tmp_path / "m", 1, 1, None)
    assert (tmp_path / "m").read_text().count("\n") == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 40))
def test_a_disturbed_run_ends_with_the_file_of_an_undisturbed_one(tmp_path, reached, lag, torn):
    run_rounds(tmp_path / "calm", 1, 10, None)
    path, checkpoint = tmp_path / "metrics.jsonl", max(0, reached - lag)
    run_rounds(path, 1, reached, None)
    with path.open("a") as file:
        file.write(json.dumps({"round": reached + 1, "train/loss": 1 / (reached + 1)})[:torn])
    run_rounds(path, checkpoint + 1, 10, checkpoint)
    assert path.read_bytes() == (tmp_path / "calm").read_bytes()


def test_resuming_without_the_file_starts_one(tmp_path):
    run_rounds(tmp_path / "m", 6, 7, 5)
    assert [json.loads(line)["round"] for line in (tmp_path / "m").open()] == [6, 7]


@pytest.mark.parametrize("line", ["not json", "[]", "{}", '{"round": null}'])
def test_a_damaged_line_is_refused_and_the_file_left_alone(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    content = f'{{"round": 1}}\n{line}\n{{"round": 3}}\n'
    path.write_text(content)
    with pytest.raises(UserError, match="line 2"):
        JsonlTracker(path, 3)
    assert path.read_text() == content


def test_a_full_disk_is_said_once_and_its_lines_come_when_there_is_room_again(tmp_path, monkeypatch, capsys):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1})

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(jsonl.os, "fsync", full)
        tracker.log({"round": 2})
        tracker.log({"round": 3})
    assert (
        capsys.readouterr().err
        == f"{path} cannot be written: No space left on device; the run goes on and tries again\n"
    )
    with path.open("a") as file:
        file.write('{"rou')  # what an attempt that failed may leave
    tracker.log({"round": 4})
    tracker.close()
    assert path.read_text() == "".join(f'{{"round": {number}}}\n' for number in (1, 2, 3, 4))


def test_a_tracker_that_cannot_write_is_left_out_and_the_others_go_on(tmp_path, capsys):
    class Closed(LineTracker):
        def log(self, metrics):
            raise BrokenPipeError(32, "Broken pipe")

    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([Closed(2, sys.stdout), JsonlTracker(path, None)])
    trackers.log({"round": 1})
    trackers.log({"round": 2})
    assert capsys.readouterr().err == "Closed stopped: Broken pipe; the run goes on\n"
    assert path.read_text().count("\n") == 2
