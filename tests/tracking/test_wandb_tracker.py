import json
import os
import socket
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError

from fedmef_dist.tracking import TrackingSettings, WandbSettings, open_trackers

pytest.importorskip("wandb")

RUN = """
import json, pathlib, sys, time
from fedmef_dist.tracking import TrackingSettings, WandbSettings, open_trackers

mode, directory, state = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
import fedmef_dist.tracking.wandb as tracking
tracking._CONNECT_SECONDS = 2.0
started = time.monotonic()
settings = TrackingSettings(console=False, wandb=WandbSettings(mode=mode, tags=["a-tag"]))
trackers = open_trackers(settings, directory, {"method": {"name": "fedmef"}}, 3, 0 if state else None, state)
opened = time.monotonic() - started
for number in (1, 2, 3):
    trackers.log({"round": number, "train/loss": 0.5 / number})
trackers.finish({"eval/accuracy_last": 0.875})
logged = time.monotonic() - started
trackers.close()
state = {key: value for key, value in trackers.state().items() if key.startswith("wandb/")}
print(json.dumps({"opened": opened, "logged": logged, "state": state}))
"""


def run(mode, directory, state=None, **variables):
    directory.mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | variables
    return subprocess.run(
        [sys.executable, "-c", RUN, mode, str(directory), json.dumps(state or {})],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def content(directory):
    return b"".join(path.read_bytes() for path in (directory / "wandb").glob("*run-*/*.wandb"))


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    directory = tmp_path_factory.mktemp("offline") / "run"
    return directory, run("offline", directory, MY_SECRET_TOKEN="tell-nobody", WANDB_API_KEY="k" * 40)


def test_offline_writes_a_real_run_with_config_rounds_and_summary(offline):
    directory, _ = offline
    data = content(directory)
    for expected in (b"fedmef", b"a-tag", b"train/loss", b"0.25", b"eval/accuracy_last", b"0.875"):
        assert expected in data
    assert (directory / "metrics.jsonl").read_text().count("\n") == 3


def test_opening_and_logging_wait_for_nothing(offline):
    result = json.loads(offline[1].stdout.splitlines()[-1])
    assert result["opened"] < 0.5
    assert result["logged"] < 1.0


def test_nothing_but_results_is_written_or_said(offline):
    directory, result = offline
    written = content(directory) + b"".join(p.read_bytes() for p in (directory / "wandb").rglob("*") if p.is_file())
    for private in (b"tell-nobody", b"k" * 40, socket.gethostname().encode() + b'"', sys.executable.encode()):
        assert private not in written
    names = {path.name for path in (directory / "wandb").rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log"}
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


def test_a_resumed_run_goes_on_under_its_id(offline, tmp_path):
    state = json.loads(offline[1].stdout.splitlines()[-1])["state"]
    result = run("offline", tmp_path / "run", state)
    assert json.loads(result.stdout.splitlines()[-1])["state"] == state
    assert result.stderr == ""
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert file.name == f"run-{state['wandb/run_id']}.wandb"


def test_a_run_that_cannot_reach_its_server_goes_on_offline_and_says_so_once(tmp_path):
    started = time.monotonic()
    result = run("online", tmp_path / "run", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="k" * 40)
    assert time.monotonic() - started < 60
    assert result.stderr.startswith("W&B is offline: ")
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout.splitlines()[-1])["logged"] < 1.0
    assert any((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert b"0.875" in content(tmp_path / "run")


def test_a_failing_wandb_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    trackers = open_trackers(TrackingSettings(console=False), tmp_path, {}, 3, None, {})
    for number in (1, 2, 3):
        trackers.log({"round": number})
    trackers.finish({})
    trackers.close()
    error = capsys.readouterr().err
    assert error.startswith("W&B stopped: ")
    assert len(error.splitlines()) == 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_disabled_has_no_id_and_no_directory(tmp_path):
    settings = TrackingSettings(console=False, wandb=WandbSettings(mode="disabled"))
    trackers = open_trackers(settings, tmp_path, {}, 3, None, {})
    trackers.log({"round": 1})
    trackers.close()
    assert not any(key.startswith("wandb/") for key in trackers.state())
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("wrong", [{"project": "a/b"}, {"project": ""}, {"mode": "on"}, {"group": ""}, {"tags": "a"}])
def test_settings_that_wandb_would_refuse_are_refused_before_the_run(wrong):
    with pytest.raises(ValidationError):
        WandbSettings(**wrong)


def test_a_full_disk_is_said_in_one_line(tmp_path):
    """The log of W&B's own fills the disk; Python's logging would show a traceback a line."""
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    result = run("offline", tmp_path / "run", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert "Traceback" not in result.stderr
    assert "Logging error" not in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["logged"] < 5


FULL_DISK = """
import logging

def emit(handler, record):
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        handler.handleError(record)

logging.FileHandler.emit = emit
"""


def test_a_user_without_a_home_has_an_offline_run_all_the_same(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(NOBODY)
    (tmp_path / "run").mkdir()
    variables = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    result = subprocess.run(
        [sys.executable, "-c", RUN, "offline", str(tmp_path / "run"), "{}"],
        env=variables | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    assert b"0.875" in content(tmp_path / "run")


NOBODY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""
