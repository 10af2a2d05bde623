"""`wandb-sync` with W&B's real client and a stand-in server: one run without gaps, whatever was killed."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from run_dirs import configured, finished, run_rounds
from wandb_stand_in import own, serving

from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.wandb_sync import wandb_sync

pytest.importorskip("wandb")


@pytest.fixture
def server():
    with serving() as state:
        yield state


def command(run_dir, server, *options, environ=None):
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    arguments = [sys.executable, "-m", "fedmef_dist", "wandb-sync", str(run_dir), *options]
    return subprocess.run(
        arguments, env=variables | server.environment | (environ or {}), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_sent_as_one_and_again_without_doubling(tmp_path, server):
    run_dir = finished(tmp_path / "run", rounds=5)
    for _ in range(2):
        done = command(run_dir, server, environ={"WANDB_PROJECT": "elsewhere"})
        assert (done.returncode, done.stderr) == (0, "")
    identity = (run_dir / "wandb" / "run-id").read_text().strip()
    assert list(server.runs) == [identity]
    assert [own(row) for row in server.history(identity)] == lines(run_dir)
    assert server.runs[identity]["summary"]["metrics/lines"] == 5
    assert server.runs[identity]["variables"]["project"] == "elsewhere"
    assert done.stdout.splitlines() == [
        f"sends {run_dir}, with its summary: 5 rounds, 5 keys, as elsewhere/{identity}",
        "sent 5 rounds",
    ]
    assert [path.name for path in (run_dir / "wandb").iterdir()] == ["run-id"]


def test_a_directory_that_cannot_keep_the_identity_is_sent_under_the_one_that_was_told(tmp_path, server):
    run_dir = finished(tmp_path / "run", rounds=2)
    (run_dir / "wandb").write_text("")  # in the way of the folder, as a disk that takes nothing would be
    done = command(run_dir, server)
    assert (done.returncode, done.stderr) == (0, "")
    (identity,) = server.runs
    assert done.stdout.splitlines()[0].endswith(f"as fedmef/{identity}")


def test_a_finished_run_whose_metrics_are_cut_is_not_sent(tmp_path):
    run_dir = finished(tmp_path / "run", rounds=3)
    metrics = run_dir / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    with pytest.raises(UserError, match="round") as caught:
        wandb_sync(run_dir, dry_run=True, watch=False, every=1.0)
    assert "metrics.jsonl" in str(caught.value)


def test_a_watcher_follows_a_run_that_goes_back_to_a_checkpoint_and_then_finishes(tmp_path, server):
    run_dir = tmp_path / "run"
    configured(run_dir, {"name": "x"})
    state = run_rounds(run_dir, 2)
    run_rounds(run_dir, 4, first=3, state=state)
    done = []
    watcher = threading.Thread(
        target=lambda: done.append(command(run_dir, server, "--watch", "--every", "0.2")), daemon=True
    )
    watcher.start()
    deadline = time.monotonic() + 100
    while not any(found["history"] for found in list(server.runs.values())):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (run_dir / "owner.json").unlink()
    (run_dir / "config.yaml").unlink()
    (run_dir / "metrics.jsonl").unlink()
    finished(run_dir, rounds=6)
    watcher.join(120)
    assert done[0].returncode == 0
    ((identity, _),) = server.runs.items()
    assert [own(row) for row in server.history(identity)] == lines(run_dir)
    assert len(server.history(identity)) == 6


def test_a_dry_run_sends_and_changes_nothing(tmp_path, server, capsys):
    run_dir = finished(tmp_path / "run", rounds=2)
    assert wandb_sync(run_dir, dry_run=True, watch=False, every=1.0) == 0
    assert capsys.readouterr().out == (
        f"would send {run_dir}, with its summary: 2 rounds, 5 keys, as fedmef/(a new run)\n"
    )
    assert (server.runs, (run_dir / "wandb").exists()) == ({}, False)


def test_a_gap_is_named_and_nothing_is_sent(tmp_path):
    run_dir = finished(tmp_path / "run", rounds=4)
    kept = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(kept[:1] + kept[2:]))
    with pytest.raises(UserError, match="round 2 is missing before it"):
        wandb_sync(run_dir, dry_run=False, watch=False, every=1.0)
    with pytest.raises(UserError, match="there is no run"):
        wandb_sync(tmp_path / "nowhere", dry_run=True, watch=False, every=1.0)


def test_a_server_that_is_not_there_is_one_line(tmp_path, server):
    run_dir = finished(tmp_path / "run", rounds=2)
    done = command(run_dir, server, environ={"WANDB_API_KEY": ""})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B failed: ")
