"""The states of runs, as `status` tells them."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from run_dirs import TREE, configured, finished, model_digest, run_rounds

from fedmef_dist.base.errors import UserError
from fedmef_dist.runs import state as module
from fedmef_dist.runs.directory import claim, write_configuration
from fedmef_dist.runs.owner_record import Record, here
from fedmef_dist.runs.state import statuses


def status(run_dir):
    (found,) = statuses([run_dir])
    return found


def stopped(run_dir, rounds=4, saves=(2,)):
    configured(run_dir, TREE)
    run_rounds(run_dir, rounds, saves=saves)
    return run_dir


def write_record(run_dir, **changes):
    now = time.time()
    values = {**here().model_dump(), "token": "ab", "round": 4, "rounds": 6, "heartbeat": now, "progress": now}
    (run_dir / "owner.json").write_text(Record(**{**values, **changes}).model_dump_json())


@pytest.fixture(scope="module")
def dead():
    """The number of a process that was."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_finished_run(tmp_path):
    found = status(finished(tmp_path / "a b"))
    assert (found.name, found.round, found.rounds, found.accuracy) == ("finished", 6, 6, 0.6)
    assert found.digest == model_digest(6)
    assert found.mend == ""


def test_a_run_that_a_callback_ended_has_finished(tmp_path):
    run_dir = finished(tmp_path)
    write_configuration(run_dir, {**TREE, "federation": {"rounds": 40}})
    assert status(run_dir).name == "stopped"
    summary = json.loads((run_dir / "summary.json").read_text())
    (run_dir / "summary.json").write_text(json.dumps({**summary, "stopped": "no better for 5 tests"}))
    found = status(run_dir)
    assert (found.name, found.round, found.mend) == ("finished", 6, "")
    assert found.detail == "a callback ended it: no better for 5 tests"


def test_a_run_that_goes_on(tmp_path):
    configured(tmp_path / "run", TREE)
    with claim(tmp_path / "run", 6) as owner:
        owner.begin(0)
        run_rounds(tmp_path / "run", 4)
        found = status(tmp_path / "run")
    assert (found.name, found.round, found.rounds) == ("running", 4, 6)
    assert found.seconds_left == 2 * 0.5
    assert re.fullmatch(f"on {re.escape(here().host)}, pid {os.getpid()}, [0-9] s ago", found.detail)


def test_a_run_in_its_start(tmp_path):
    with claim(tmp_path / "run", 6):
        found = status(tmp_path / "run")
    assert (found.name, found.round, found.rounds, found.seconds_left) == ("running", 0, 6, None)


@pytest.mark.parametrize(("saves", "start"), [((2,), "goes on from round 2"), ((), "starts again: there is no")])
def test_a_stopped_run_and_how_to_go_on(tmp_path, saves, start):
    run_dir = stopped(tmp_path / "a b", saves=saves)
    write_record(run_dir, state="stopped")
    found = status(run_dir)
    assert (found.name, found.round, found.rounds) == ("stopped", 4, 6)
    assert start in found.detail
    assert found.mend == f"fedmef-dist run '{run_dir}/config.yaml' --run-dir '{run_dir}'"


def test_a_killed_run_has_stopped(tmp_path, dead):
    run_dir = stopped(tmp_path)
    write_record(run_dir, pid=dead)
    found = status(run_dir)
    assert (found.name, found.owner.pid) == ("stopped", dead)
    assert found.detail.startswith("its process is gone: on ")


def test_a_frozen_process_hangs(tmp_path):
    run_dir = stopped(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        os.kill(sleeper.pid, signal.SIGSTOP)
        write_record(run_dir, pid=sleeper.pid, started=None, heartbeat=time.time() - 90)
        found = status(run_dir)
    finally:
        sleeper.kill()
        sleeper.wait()
    assert found.name == "hung"
    assert re.search("no heartbeat for 9[0-9] s", found.detail)


def test_a_process_that_makes_no_progress_hangs(tmp_path):
    run_dir = stopped(tmp_path)
    write_record(run_dir, progress=time.time() - 601)
    found = status(run_dir)
    assert found.name == "hung"
    assert "no round for 601 s; one took 0.5 s" in found.detail
    write_record(run_dir, progress=time.time() - 590)
    assert status(run_dir).name == "running"


def test_a_silent_host_is_looked_at_twice(tmp_path, monkeypatch):
    run_dir, waited = stopped(tmp_path), []
    monkeypatch.setattr(module.time, "sleep", waited.append)
    write_record(run_dir, host="n9", boot="b9", heartbeat=time.time() - 30)
    assert status(run_dir).name == "hung"
    write_record(run_dir, host="n9", boot="b9", heartbeat=time.time() - 90)
    found = status(run_dir)
    assert (found.name, len(waited)) == ("stopped", 2)
    assert found.detail.startswith("its host is silent: on n9, ")


def test_a_host_whose_clock_is_wrong_is_heard_by_its_heartbeat(tmp_path, monkeypatch):
    run_dir = stopped(tmp_path)
    write_record(run_dir, host="n9", boot="b9", heartbeat=1e9)
    monkeypatch.setattr(
        module.time, "sleep", lambda seconds: write_record(run_dir, host="n9", boot="b9", heartbeat=1e9 + seconds)
    )
    found = status(run_dir)
    assert found.name == "running"


@pytest.mark.parametrize("configuration", [True, False])
def test_a_new_run(tmp_path, configuration):
    if configuration:
        configured(tmp_path, TREE)
        (tmp_path / "owner.json").unlink()
    assert status(tmp_path).name == "new"


def test_a_prolonged_run_is_not_finished(tmp_path):
    run_dir = finished(tmp_path)
    (run_dir / "config.yaml").write_text("federation: {rounds: 9}\n")
    found = status(run_dir)
    assert (found.name, found.round, found.rounds) == ("stopped", 6, 9)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("config.yaml", None, "there is no config.yaml"),
        ("config.yaml", "[1]", "a configuration is a mapping"),
        ("config.yaml", "federation: {rounds: many}", "no federation.rounds"),
        ("summary.json", "{}", "it has no rounds"),
        ("metrics.jsonl", "x\n", "is none of metrics"),
        ("metrics.jsonl", "", "summary.json is of 6 rounds, metrics.jsonl ends with round 0"),
    ],
)
def test_a_damaged_run(tmp_path, name, content, what):
    run_dir = finished(tmp_path)
    (run_dir / name).unlink() if content is None else (run_dir / name).write_text(content)
    found = status(run_dir)
    assert found.name == "damaged"
    assert what in found.detail


def test_a_folder_of_runs_is_none_and_names_them(tmp_path):
    finished(tmp_path / "one")
    found = status(tmp_path)
    assert (found.name, found.detail) == ("no run", f"the runs in it: {tmp_path}/*")


def test_a_folder_that_was_never_a_runs_is_no_damaged_one(tmp_path):
    (tmp_path / "data.html").write_text("what fedmef-dist data writes beside the runs")
    found = status(tmp_path)
    assert (found.name, found.detail) == ("no run", "no file in it is a run's")
    (tmp_path / "summary.json").write_text("{}")
    assert status(tmp_path).name == "damaged"


@pytest.mark.parametrize("name", ["owner.json", "config.yaml", "summary.json", "metrics.jsonl"])
def test_a_fifo_is_damage_and_nobody_waits_for_it(tmp_path, name):
    run_dir = finished(tmp_path)
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    assert status(run_dir).name == "damaged"


def test_a_record_of_nonsense_is_passed_over(tmp_path):
    run_dir = finished(tmp_path)
    (run_dir / "owner.json").write_text(json.dumps({"host": "\x1b[2J", "pid": 1}))
    assert status(run_dir).name == "finished"


def test_what_cannot_be_looked_at_is_the_users_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", 300 * "a"):
        with pytest.raises(UserError, match="the run directory cannot be read: ") as caught:
            statuses([tmp_path / name])
        assert caught.value.where == str(tmp_path / name)


def test_what_is_no_directory_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no run directory"):
        statuses([tmp_path / "missing"])
