"""One owner and one truth, through whole runs: double starts in every order, and files that somebody else touches."""

import errno
import json
import os
import shutil
import subprocess
import sys
from itertools import count

import pytest
import torch
from tiny import TREE, alone, tiny

from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.config import to_tree
from fedmef_dist.runs.directory import write_configuration
from fedmef_dist.runs.owner_record import look
from fedmef_dist.runs.verify import verify
from fedmef_dist.session import session
from fedmef_dist.session.session import simulate
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking import jsonl
from fedmef_dist.tracking.console import LineTracker
from fedmef_dist.tracking.lines import read_lines

CONFIG = tiny(checkpoint={"every": 2})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return simulate(CONFIG, alone(), tmp_path_factory.mktemp("undisturbed"), "auto").values


def at_round(monkeypatch, number, action):
    """Calls ``action(simulation)`` as the round begins."""
    play = Simulation.play_round

    def played(self):
        if self.round == number:
            action(self)
        return play(self)

    monkeypatch.setattr(Simulation, "play_round", played)


def second_start(run_dir):
    with pytest.raises(UserError, match="another run is writing here: "):
        simulate(CONFIG, alone(), run_dir, "auto")


def whole(run_dir, undisturbed):
    """The run is complete, its files belong together, and its result is the undisturbed one."""
    verify(run_dir)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["model/digest"] == undisturbed["model/digest"]
    assert summary["metrics/lines"] == len(read_lines(run_dir)[0]) == 6
    return True


# --- a second start, whenever it comes


def test_a_whole_run_verifies(tmp_path, undisturbed):
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)
    record = look(tmp_path).record
    assert (record.state, record.round, record.rounds) == ("finished", 6, 6)


def test_a_second_start_during_the_start_is_refused(tmp_path, monkeypatch, undisturbed):
    start, calls = Simulation.start, count()

    def started(self):
        if next(calls) == 0:
            second_start(tmp_path)
        start(self)

    monkeypatch.setattr(Simulation, "start", started)
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_second_start_in_the_middle_is_refused(tmp_path, monkeypatch, undisturbed, number):
    at_round(monkeypatch, number, lambda _: second_start(tmp_path))
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)


@pytest.mark.parametrize("name", ["_write_summary", "write_configuration"])
def test_a_second_start_while_files_are_written_is_refused(tmp_path, monkeypatch, undisturbed, name):
    written = getattr(session, name)

    def write(*arguments):
        second_start(tmp_path)
        written(*arguments)

    monkeypatch.setattr(session, name, write)
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)


def test_a_second_start_after_the_end_ends_once_more(tmp_path, undisturbed):
    simulate(CONFIG, alone(), tmp_path, "auto")
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)


DIES = """
import os, sys
from pathlib import Path
from tiny import TREE, alone, tiny
from fedmef_dist.session.session import simulate
from fedmef_dist.simulation.loop import Simulation
play = Simulation.play_round
def played(self):
    if self.round == 4:
        os.kill(os.getpid(), 9)
    return play(self)
Simulation.play_round = played
simulate(tiny(checkpoint={"every": 2}), alone(), Path(sys.argv[1]), "auto")
"""


def test_the_next_start_follows_a_killed_owner_at_once(tmp_path, undisturbed):
    paths = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    # The same bits need the same threads, of which another test may have set any number.
    own = {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", DIES, tmp_path], env={**os.environ, **own})
    assert done.returncode == -9
    assert look(tmp_path).record.state == "running"
    simulate(CONFIG, alone(), tmp_path, "must")
    assert whole(tmp_path, undisturbed)


def test_a_refused_start_leaves_everything_as_it_was(tmp_path):
    simulate(CONFIG, alone(), tmp_path, "auto")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for changes in ({"seed": 1}, {"federation": {"rounds": 5}}):
        with pytest.raises(UserError):
            simulate(tiny(checkpoint={"every": 2}, **changes), alone(), tmp_path, "auto")
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes()
    path.write_bytes(lines.replace(b'"round": 2', b'"round": 3'))
    with pytest.raises(UserError, match=r"round 2 is missing before it\nwhere: .*line 2"):
        simulate(CONFIG, alone(), tmp_path, "auto")
    path.write_bytes(lines)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


# --- what somebody else does to the files


def replace_metrics(run_dir):
    (run_dir / "metrics.jsonl").rename(run_dir / "old")
    (run_dir / "metrics.jsonl").write_bytes(b"")


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (shutil.rmtree, "was removed"),
        (lambda run_dir: (run_dir / "metrics.jsonl").unlink(), "was removed"),
        (replace_metrics, "was replaced"),
        (lambda run_dir: (run_dir / "metrics.jsonl").write_bytes(b""), "was changed"),
    ],
    ids=["directory removed", "metrics removed", "metrics replaced", "metrics emptied"],
)
@pytest.mark.parametrize("number", [3, 6])
def test_files_that_are_taken_away_end_the_run(tmp_path, monkeypatch, harm, what, number):
    run_dir = tmp_path / "run"
    at_round(monkeypatch, number, lambda _: harm(run_dir))
    with pytest.raises(FilesLostError, match=what):
        simulate(CONFIG, alone(), run_dir, "auto")
    assert not (run_dir / "summary.json").exists()
    assert not run_dir.exists() or look(run_dir).record.state == "stopped"


def test_a_directory_removed_before_the_summary_ends_the_run(tmp_path, monkeypatch):
    written = session._write_summary

    def write(run_dir, summary):
        shutil.rmtree(run_dir)
        written(run_dir, summary)

    monkeypatch.setattr(session, "_write_summary", write)
    with pytest.raises(FilesLostError, match=r"the run directory .* was removed"):
        simulate(CONFIG, alone(), tmp_path / "run", "auto")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["logs/rank-000.log", "timeline/rank-000.json"])
@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/full")], ids=["FIFO", "link"])
def test_a_log_that_is_no_file_is_left_alone_and_stops_nobody(tmp_path, capsys, undisturbed, name, lay):
    (tmp_path / "run").mkdir()
    write_configuration(tmp_path / "run", to_tree(CONFIG))
    (tmp_path / "run" / name).parent.mkdir()
    lay(tmp_path / "run" / name)
    config = tiny(checkpoint={"every": 2}, tracking={"timeline": True, **TREE["tracking"]})
    simulate(config, alone(), tmp_path / "run", "auto")
    assert whole(tmp_path / "run", undisturbed)
    assert sum(str(tmp_path / "run" / name) in line for line in capsys.readouterr().err.splitlines()) == 1


def test_an_empty_directory_that_looks_like_a_checkpoint_stops_nobody(tmp_path, capsys, undisturbed):
    simulate(tiny(checkpoint={"every": 2}, federation={"rounds": 4}), alone(), tmp_path, "auto")
    (tmp_path / "checkpoints" / "round-999999").mkdir()
    simulate(CONFIG, alone(), tmp_path, "auto")
    said = [line for line in capsys.readouterr().err.splitlines() if "round-999999" in line]
    assert said == [f"passed over, for it is no checkpoint: {tmp_path}/checkpoints/round-999999"]
    (tmp_path / "checkpoints" / "round-999999").rmdir()
    assert whole(tmp_path, undisturbed)


def test_a_damaged_checkpoint_of_a_later_round_stops_nobody(tmp_path, undisturbed):
    simulate(tiny(checkpoint={"every": 2}, federation={"rounds": 4}), alone(), tmp_path, "auto")
    shutil.copytree(tmp_path / "checkpoints" / "round-000004", tmp_path / "checkpoints" / "round-000099")
    simulate(CONFIG, alone(), tmp_path, "auto")
    assert whole(tmp_path, undisturbed)


# --- a full disk


def test_what_a_full_disk_refused_is_written_after_a_resume(tmp_path, monkeypatch, undisturbed):
    pwrite = os.pwrite

    def full(handle, data, place):
        raise OSError(errno.ENOSPC, "No space left on device")

    at_round(monkeypatch, 3, lambda _: monkeypatch.setattr(jsonl.os, "pwrite", full))
    with pytest.raises(UserError, match=r"all rounds are done, but rounds 3 to 6 are missing in .*: No space"):
        simulate(CONFIG, alone(), tmp_path, "auto")
    assert not (tmp_path / "summary.json").exists()
    assert len(read_lines(tmp_path)[0]) == 2
    verify(tmp_path)
    monkeypatch.setattr(jsonl.os, "pwrite", pwrite)
    simulate(CONFIG, alone(), tmp_path, "must")
    assert whole(tmp_path, undisturbed)


def test_other_trackers_hear_of_every_round_although_one_fails(tmp_path, monkeypatch, undisturbed):
    monkeypatch.setattr(LineTracker, "log", lambda *_: (_ for _ in ()).throw(BrokenPipeError(32, "Broken pipe")))
    simulate(
        tiny(checkpoint={"every": 2}, tracking={"console": True, "wandb": {"mode": "disabled"}}),
        alone(),
        tmp_path,
        "auto",
    )
    assert look(tmp_path).record.round == 6
    assert whole(tmp_path, undisturbed)
