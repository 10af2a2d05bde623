import json
import sys

import pytest
from run_dirs import TREE, configured, finished, run_rounds

from fedmef_dist.cli import main


@pytest.fixture
def command(monkeypatch, capsys):
    """`command("status", ...)` gives the exit status, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedmef-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    return call


def stopped(run_dir):
    configured(run_dir, TREE)
    run_rounds(run_dir, 4, saves=(2,))
    return run_dir


def test_one_run_in_full(command, tmp_path):
    run_dir = finished(tmp_path / "run")
    status, out, _ = command("status", run_dir, "--verify")
    assert status == 0
    first, second = out.splitlines()
    assert first == f"{run_dir}: finished, verified"
    assert second.startswith("round 6 of 6, accuracy 0.6000, digest ")
    status, out, _ = command("status", stopped(tmp_path / "half"))
    assert status == 0
    assert out.splitlines()[-1] == f"to go on: fedmef-dist run {tmp_path}/half/config.yaml --run-dir {tmp_path}/half"


def test_many_runs_as_a_table(command, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # workers of pytest-xdist are told of 80
    status, out, _ = command("status", finished(tmp_path / "one"), stopped(tmp_path / "two"))
    assert status == 0
    assert [word in out for word in ("finished", "6/6", "60.00", "stopped", "4/6")] == [True] * 5


def test_a_table_that_would_break_names_gives_way_to_lines(command, tmp_path, monkeypatch):
    one, two = finished(tmp_path / "one"), stopped(tmp_path / "two")
    narrowest = len(str(one)) + 93  # with 30 for the details
    monkeypatch.setenv("COLUMNS", str(narrowest))
    table = command("status", one, two)[1]
    assert f"│ {one} │ finished" in table
    assert {len(line) for line in table.splitlines()} == {narrowest}
    monkeypatch.setenv("COLUMNS", str(narrowest - 1))
    lines = command("status", one, two)[1].splitlines()
    assert (lines[0], lines[2]) == (f"{one}: finished", "")
    assert lines[3] == f"{two}: stopped"


def test_a_gap_is_status_1_with_verify_alone(command, tmp_path):
    run_dir = finished(tmp_path / "run")
    path = run_dir / "metrics.jsonl"
    path.write_text(path.read_text().replace('"eval/accuracy": 0.2', '"eval/accuracy": 0.9'))
    assert command("status", run_dir)[0] == 0
    status, out, _ = command("status", run_dir, "--verify")
    assert status == 1
    assert "lines were changed after they were written" in out
    assert f"where: {path}, lines 1 to 3" in out


def test_a_folder_without_a_run_is_not_verified(command, tmp_path):
    finished(tmp_path / "sweep" / "one")
    assert command("status", tmp_path / "sweep")[0] == 0
    status, out, _ = command("status", tmp_path / "sweep", "--verify")
    assert status == 1
    assert out == f"{tmp_path}/sweep: no run\nthe runs in it: {tmp_path}/sweep/*\n"


def test_objects_for_programs(command, tmp_path):
    status, out, _ = command("status", finished(tmp_path / "one"), stopped(tmp_path / "two"), "--json", "--verify")
    one, two = json.loads(out)
    assert status == 0
    assert (one["state"], one["round"], one["rounds"], one["accuracy"], one["verified"]) == (
        "finished",
        6,
        6,
        0.6,
        True,
    )
    assert (two["state"], two["round"], two["owner"]["state"]) == ("stopped", 4, "stopped")
    assert "token" not in two["owner"]


def test_a_missing_directory_is_wrong_input(command, tmp_path):
    status, _, err = command("status", tmp_path / "missing")
    assert status == 2
    assert err.startswith(f"there is no run directory {tmp_path}/missing\nmend: ")


def test_nothing_that_a_terminal_obeys_is_printed(command, tmp_path):
    run_dir = finished(tmp_path / "a\x1b[31mb\nc")
    _, out, _ = command("status", run_dir)
    assert "\x1b" not in out
    assert "a\\x1b[31mb\\nc: finished" in out
