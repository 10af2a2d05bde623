import json
import shutil
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.tracking import jsonl
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.lines import parse_rounds, read_lines
from fedmef_dist.tracking.tracker import Tracker, Trackers


def run_rounds(path, first, last, resume_round, state=None, saves=0):
    """Logs the rounds; gives the tracker's state after round ``saves``."""
    tracker = JsonlTracker(path, resume_round, state)
    kept = tracker.state()
    for number in range(first, last + 1):
        tracker.log({"round": number, "train/loss": 1 / number})
        kept = tracker.state() if number == saves else kept
    tracker.close()
    return kept


def test_a_round_is_on_disk_before_the_next_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1, "train/loss": 0.5, "model/digest": "ab"})
    assert path.read_text() == '{"round": 1, "train/loss": 0.5, "model/digest": "ab"}\n'
    tracker.log({"round": 2})
    assert path.read_text().splitlines()[1] == '{"round": 2}'
    tracker.close()


def test_a_number_that_no_reader_takes_is_written_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1, "own/sum": 1e61, "own/other": -1e300, "own/last": 1e60})
    tracker.close()
    (line,) = parse_rounds(read_lines(tmp_path)[0], path)
    assert line == {"round": 1, "own/sum": None, "own/other": None, "own/last": 1e60}


def test_what_is_not_finite_stays_valid_json(tmp_path):
    tracker = JsonlTracker(tmp_path / "m", None)
    tracker.log({"round": 1, "train/loss": float("nan"), "eval/loss": float("-inf"), "eval/accuracy": 0.5})
    tracker.close()
    line = json.loads((tmp_path / "m").read_text())
    assert line == {"round": 1, "train/loss": None, "eval/loss": None, "eval/accuracy": 0.5}


def test_a_fresh_run_starts_an_empty_file(tmp_path):
    run_rounds(tmp_path / "metrics.jsonl", 1, 3, None)
    run_rounds(tmp_path / "metrics.jsonl", 1, 1, None)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 40))
def test_a_disturbed_run_ends_with_the_file_of_an_undisturbed_one(tmp_path, reached, lag, torn):
    run_rounds(tmp_path / "metrics.jsonl", 1, 10, None)
    calm = (tmp_path / "metrics.jsonl").read_bytes()
    path, checkpoint = tmp_path / "metrics.jsonl", max(1, reached - lag)
    state = run_rounds(path, 1, reached, None, saves=checkpoint)
    with path.open("a") as file:
        file.write(json.dumps({"round": reached + 1, "train/loss": 1 / (reached + 1)})[:torn])
    run_rounds(path, checkpoint + 1, 10, checkpoint, state)
    assert path.read_bytes() == calm


def test_resuming_without_the_file_names_what_is_missing(tmp_path):
    state = run_rounds(tmp_path / "metrics.jsonl", 1, 5, None, saves=5)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="rounds 1 to 5 are missing"):
        JsonlTracker(tmp_path / "metrics.jsonl", 5, state)
    assert not (tmp_path / "metrics.jsonl").exists()


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


def test_a_tracker_that_cannot_write_is_closed_and_left_out_and_the_others_go_on(tmp_path, capsys):
    class Closed(Tracker):
        def log(self, metrics):
            raise BrokenPipeError(32, "Broken pipe")

        def close(self):
            closed.append(self)
            raise BrokenPipeError(32, "Broken pipe")

    closed = []
    path = tmp_path / "metrics.jsonl"
    trackers = Trackers([Closed(), JsonlTracker(path, None)])
    trackers.log({"round": 1})
    trackers.log({"round": 2})
    assert capsys.readouterr().err == "Closed stopped: Broken pipe; the run goes on\n"
    trackers.close()
    assert len(closed) == 1
    assert path.read_text().count("\n") == 2


def test_a_tracker_whose_terminal_is_gone_keeps_no_other_from_being_closed(tmp_path, capsys):
    class Gone(Tracker):
        def log(self, metrics):
            return None

        def close(self):
            raise OSError(5, "Input/output error")

    jsonl = JsonlTracker(tmp_path / "metrics.jsonl", None)
    Trackers([jsonl, Gone()]).close()
    assert capsys.readouterr().err == "Gone could not be closed: Input/output error\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        jsonl.close()


# --- what the disk refuses, and what somebody else does to the file


@pytest.fixture
def full_disk(monkeypatch):
    """`with full_disk():` no write is taken."""

    @contextmanager
    def full():
        def refuse(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(jsonl.os, "pwrite", refuse)
            yield

    return full


def test_refused_lines_are_in_the_checkpoint_and_written_by_the_next_start(tmp_path, full_disk, capsys):
    run_rounds(tmp_path / "metrics.jsonl", 1, 6, None)
    calm = (tmp_path / "metrics.jsonl").read_bytes()
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1, "train/loss": 1.0})
    with full_disk():
        for number in (2, 3):
            tracker.log({"round": number, "train/loss": 1 / number})
    state = tracker.state()
    tracker.close()
    assert path.read_text().count("\n") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"rounds 2 to 3 are missing in {path}; checkpoints have them, and the next start writes them"
    )
    assert run_rounds(path, 4, 6, 3, json.loads(json.dumps(state)))
    assert path.read_bytes() == calm


def test_refused_lines_that_were_written_after_the_checkpoint_are_not_written_twice(tmp_path, full_disk):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    with full_disk():
        tracker.log({"round": 1})
    state = tracker.state()
    tracker.log({"round": 2})
    tracker.close()
    JsonlTracker(path, 1, state).close()
    assert path.read_text() == '{"round": 1}\n'


def test_a_run_whose_last_lines_the_disk_refuses_does_not_finish(tmp_path, full_disk):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", None)
    tracker.log({"round": 1})
    with full_disk():
        tracker.log({"round": 2})
        with pytest.raises(UserError, match=r"all rounds are done, but round 2 is missing in .*: No space"):
            tracker.finish({})
    tracker.finish({})
    tracker.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def replace(path):
    path.rename(path.with_name("old"))
    path.write_bytes(path.with_name("old").read_bytes())


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda path: path.unlink(), "was removed"),
        (lambda path: shutil.rmtree(path.parent), "was removed"),
        (replace, "was replaced"),
        (lambda path: path.write_text(""), "was changed"),
        (lambda path: path.open("a").write("{}\n"), "was changed"),
    ],
    ids=["removed", "directory removed", "replaced", "emptied", "written into"],
)
def test_what_somebody_else_does_to_the_file_ends_the_run(tmp_path, harm, what):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1})
    harm(path)
    with pytest.raises(FilesLostError, match=what):
        tracker.log({"round": 2})
    with pytest.raises(FilesLostError, match=what):
        tracker.finish({})
    tracker.close()


def test_a_byte_changed_in_the_middle_of_a_run_is_found_at_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path, None)
    tracker.log({"round": 1, "train/loss": 0.5})
    with path.open("r+b") as file:
        file.seek(28)
        file.write(b"6")
    tracker.log({"round": 2})
    with pytest.raises(FilesLostError, match="does not hold what this run has written"):
        tracker.finish({})
    tracker.close()


def test_a_link_in_the_files_place_is_replaced_and_what_it_points_to_left_alone(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    run_rounds(tmp_path / "metrics.jsonl", 1, 1, None)
    assert (tmp_path / "precious").read_text() == "mine"
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
