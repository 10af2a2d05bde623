"""W&B's real client writes into files and to a stand-in server; what arrives is what metrics.jsonl has."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from pydantic import ValidationError
from wandb_stand_in import KEY, exit_codes, own, records, rows, serving

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking import TrackingSettings, WandbSettings, open_trackers
from fedmef_dist.tracking.settings import with_environment
from fedmef_dist.tracking.wandb_run import run_id

pytest.importorskip("wandb")

# Rounds first to last of a run; a kill comes at once behind the last one, and a requeue closes without a summary.
RUN = """
import json, os, pathlib, signal, sys, threading, time
import numpy as np
from fedmef_dist.tracking import TrackingSettings, WandbSettings, open_trackers
import fedmef_dist.tracking.wandb as tracking
import fedmef_dist.tracking.wandb_run as sending

settings, directory, first, last, end = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), *json.loads(sys.argv[3])
tracking.CONNECT_SECONDS = sending.CONNECT_SECONDS = float(os.environ.get("TEST_CONNECT", 60))
tracking.FINISH_SECONDS = float(os.environ.get("TEST_FINISH", 60))
sending.WandbRun.__init__.__kwdefaults__["patience"] = tracking.FINISH_SECONDS
started, logged_all, open_run = time.monotonic(), threading.Event(), tracking.WandbTracker._open
if end == "held":  # W&B is not even imported before everything is logged
    tracking.WandbTracker._open = lambda tracker: logged_all.wait(60) and open_run(tracker)
wandb = WandbSettings(**settings)
trackers = open_trackers(
    TrackingSettings(console=False, wandb=wandb), directory, {"method": {"name": "fedmef"}}, 9, first - 1 or None, {},
    details=lambda: {"client_loss": np.array([0.5, np.nan, 2.0])},
)
for number in range(first, last + 1):
    loss = float("nan") if number == 2 else 0.5 / number
    trackers.log({"round": number, "train/loss": loss, "eval/accuracy": 0.1 * number, "time/round": time.monotonic()})
    if number == 2 and wandb.artifacts:
        trackers.saved(directory / "checkpoints" / "round-000002")
if end in ("kill", "no service"):
    while not list(directory.glob("wandb/*run-*/*.wandb")):
        time.sleep(0.1)
    time.sleep(1)
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "no service":
    (service,) = [
        int(path.parent.name) for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if f"--pid {os.getpid()} ".encode() in path.read_bytes().replace(bytes(1), b" ")
    ]
    os.kill(service, signal.SIGKILL)
if end != "requeue":
    trackers.finish({"eval/accuracy_last": 0.875})
logged, imported = time.monotonic() - started, "wandb" in sys.modules
logged_all.set()
trackers.close()
print(json.dumps({"logged": logged, "imported": imported}))
"""


def environment(**variables):
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | variables


def run(directory, first=1, last=3, end="", mode="offline", check=True, settings=None, **variables):
    directory.mkdir(exist_ok=True)
    given = json.dumps({"mode": mode, "tags": ["a-tag"], **(settings or {})})
    return subprocess.run(
        [sys.executable, "-c", RUN, given, str(directory), json.dumps([first, last, end])],
        env=environment(**variables), capture_output=True, text=True, timeout=120, check=check,
    )  # fmt: skip


def files(directory):
    return sorted((directory / "wandb").glob("*run-*/*.wandb"))


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def server():
    with serving() as state:
        yield state


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """The directory of an offline run, what its process said, and what it asked a server for."""
    directory = tmp_path_factory.mktemp("offline") / "run"
    with serving() as server:
        result = run(directory, end="held", MY_SECRET_TOKEN="tell-nobody", **server.environment)
        return directory, result, server.paths


def test_offline_asks_no_server_for_anything(offline):
    assert offline[2] == set()


def test_offline_writes_a_real_run_with_config_rounds_and_summary(offline):
    directory = offline[0]
    (file,) = files(directory)
    assert rows(file) == lines(directory)
    assert [line["train/loss"] for line in lines(directory)] == [0.5, None, 0.5 / 3]
    for expected in (b"fedmef", b"a-tag", b"eval/accuracy_last", b"0.875"):
        assert expected in file.read_bytes()
    assert file.name == f"run-{(directory / 'wandb' / 'run-id').read_text().strip()}.wandb"


def test_the_round_is_the_step_and_the_best_counts(offline):
    (file,) = files(offline[0])
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in records(file)
               if record.HasField("metric")}  # fmt: skip
    assert metrics["*"].step_metric == "round"
    assert metrics["eval/accuracy"].summary.max
    assert metrics["eval/loss"].summary.min


def test_opening_and_logging_wait_for_nothing(offline):
    result = json.loads(offline[1].stdout.splitlines()[-1])
    assert result["logged"] < 40  # whoever waits for W&B does so for 60
    assert not result["imported"]


def test_nothing_but_results_is_written_or_said(offline):
    directory, result, _ = offline
    written = b"".join(path.read_bytes() for path in (directory / "wandb").rglob("*") if path.is_file())
    for private in (b"tell-nobody", KEY.encode(), socket.gethostname().encode() + b'"', sys.executable.encode()):
        assert private not in written
    names = {path.name for path in (directory / "wandb").rglob("*") if path.is_file()}
    assert not names & {"wandb-metadata.json", "requirements.txt", "output.log"}
    assert result.stderr == ""
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("end", ["kill", "requeue"])
def test_a_run_that_was_killed_or_requeued_and_goes_on_is_whole_in_one_file(tmp_path, end):
    directory = tmp_path / "run"
    run(directory, last=4, end=end, check=False)
    (before,) = files(directory)
    assert exit_codes(before) == ([] if end == "kill" else [1])
    result = run(directory, first=3, last=5)
    (file,) = files(directory)
    assert exit_codes(file) == [0]
    assert (file.parent != before.parent, file.name) == (True, before.name)
    assert rows(file) == lines(directory)
    assert [line["round"] for line in lines(directory)] == [1, 2, 3, 4, 5]
    assert result.stderr == ""


def test_a_server_gets_each_round_once_also_of_a_run_that_was_killed(tmp_path, server):
    directory = tmp_path / "run"
    run(directory, last=4, end="kill", mode="online", check=False, **server.environment)
    result = run(directory, first=3, last=5, mode="online", **server.environment)
    ((identity, found),) = server.runs.items()
    assert [own(row) for row in server.history(identity)] == lines(directory)
    assert [row["_step"] for row in server.history(identity)] == [1, 2, 3, 4, 5]
    assert found["summary"]["eval/accuracy"] == {"max": 0.5}
    assert found["summary"]["eval/accuracy_last"] == 0.875
    assert found["variables"]["displayName"] == "run"
    assert found["exit code"] == 0
    assert result.stderr == ""


@pytest.mark.parametrize("trouble", ["fails", "cuts", "slow"])
def test_a_server_that_fails_or_hangs_in_mid_run_is_one_line(tmp_path, server, trouble):
    directory = tmp_path / "run"
    setattr(server, trouble, 100.0)
    patience = 10 if trouble == "slow" else 4
    result = run(directory, mode="online", TEST_FINISH=str(patience), **server.environment)
    assert server.streams >= 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("W&B ")
    assert "wandb-sync" in line
    if trouble == "slow":  # a busy machine takes seconds to import all; whoever waits for the server takes more
        assert json.loads(result.stdout)["logged"] < patience - 1
    assert len(lines(directory)) == 3


def test_a_run_that_cannot_reach_its_server_goes_on_offline_and_says_so_once(tmp_path):
    started = time.monotonic()
    nowhere = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}
    result = run(tmp_path / "run", mode="online", TEST_CONNECT="10", **nowhere)
    assert time.monotonic() - started < 100
    assert result.stderr.startswith("W&B is offline: ")
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout.splitlines()[-1])["logged"] < 9  # whoever waits for the server does so for 10
    (file,) = files(tmp_path / "run")
    assert file.parent.name.startswith("offline-run-")
    assert rows(file) == lines(tmp_path / "run")


def test_a_server_that_answers_too_late_is_one_line(tmp_path, server):
    server.late = 100.0
    result = run(tmp_path / "run", mode="online", TEST_CONNECT="3", TEST_FINISH="30", **server.environment)
    (line,) = result.stderr.splitlines()
    assert line.startswith("W&B is offline: ")
    (file,) = files(tmp_path / "run")
    assert rows(file) == lines(tmp_path / "run")


def test_a_service_of_wandbs_that_is_killed_is_one_line(tmp_path):
    result = run(tmp_path / "run", end="no service")
    (line,) = result.stderr.splitlines()
    assert line.startswith("W&B stopped: ")
    assert len(lines(tmp_path / "run")) == 3


@pytest.mark.parametrize("reinit", ["default", "create_new"])
def test_a_run_that_the_caller_has_open_stays_as_it_is(tmp_path, monkeypatch, reinit):
    import wandb

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # its threads would stay
    for name in ("own", "run"):
        (tmp_path / name).mkdir()
    settings = wandb.Settings(silent=True, console="off", reinit=reinit)
    own_run = wandb.init(mode="offline", dir=tmp_path / "own", settings=settings)
    try:
        trackers = open_trackers(TrackingSettings(console=False), tmp_path / "run", {}, 1, None, {})
        trackers.log({"round": 1})
        trackers.finish({})
        trackers.close()
        own_run.log({"x": 1})
        own_run.finish()
    finally:
        wandb.teardown()
    (file,) = files(tmp_path / "own")
    assert rows(file) == [{"x": 1}]
    assert rows(*files(tmp_path / "run")) == [{"round": 1}]


def test_what_is_opted_in_is_sent_and_nothing_else(tmp_path):
    directory, code = tmp_path / "run", tmp_path / "code"
    (directory / "checkpoints" / "round-000002").mkdir(parents=True)
    code.mkdir()
    (code / "own.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "m", "--allow-empty"]):
        subprocess.run(["git", *words], cwd=code, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=code, capture_output=True, text=True, check=True).stdout
    import torch
    from safetensors.torch import save_file

    tensors = {"mask/active": torch.tensor([1, 0]), "model/values": torch.ones(3)}
    save_file(tensors, directory / "checkpoints" / "round-000002" / "state.safetensors")
    wanted = ("git", "code", "artifacts", "histograms", "system_metrics")
    given = json.dumps({"mode": "offline", **dict.fromkeys(wanted, True)})
    result = subprocess.run(
        [sys.executable, "-c", RUN, given, str(directory), "[1, 3, \"\"]"],
        cwd=code, env=environment(WANDB_DATA_DIR=str(tmp_path / "data"), WANDB_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    (file,) = files(directory)
    found = records(file)
    artifacts = {record.request.log_artifact.artifact.type or record.artifact.type for record in found
                 if record.HasField("artifact") or record.request.HasField("log_artifact")}  # fmt: skip
    assert artifacts == {"code", "model", "mask"}
    assert sum(rows(file)[0]["histogram/client_loss/values"]) == 2
    assert commit.strip().encode() in file.read_bytes()
    assert not any((directory / "wandb").rglob("wandb-metadata.json"))


def test_a_missing_package_is_said_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb raises ImportError
    trackers = open_trackers(TrackingSettings(console=False), tmp_path, {}, 3, None, {})
    for number in (1, 2, 3):
        trackers.log({"round": number})
    trackers.finish({})
    trackers.close()
    error = capsys.readouterr().err
    assert error.startswith("W&B cannot be imported: ")
    assert len(error.splitlines()) == 1
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_disabled_has_no_id_and_no_directory(tmp_path):
    settings = TrackingSettings(console=False, wandb=WandbSettings(mode="disabled"))
    trackers = open_trackers(settings, tmp_path, {}, 3, None, {})
    trackers.log({"round": 1})
    trackers.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_identity_stays_with_the_directory_and_an_agents_comes_first(tmp_path):
    first = run_id(tmp_path, {})
    assert (run_id(tmp_path, {}), len(first)) == (first, 12)
    assert run_id(tmp_path, {"WANDB_RUN_ID": "trial-7"}) == "trial-7"
    assert run_id(tmp_path, {}) == "trial-7"
    assert run_id(tmp_path, {"WANDB_RUN_ID": "v1.2"}) == "v1.2"
    (tmp_path / "wandb" / "run-id").write_text("../../x")
    assert len(run_id(tmp_path, {})) == 12


def test_a_variable_that_is_no_id_is_said_and_leaves_the_directorys(tmp_path, capsys):
    first = run_id(tmp_path, {"WANDB_RUN_ID": "my run"})
    assert run_id(tmp_path, {"WANDB_RUN_ID": "my run"}) == first
    assert "WANDB_RUN_ID=my run is left aside" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"project": "a/b"}, {"project": ""}, {"mode": "on"}, {"group": ""}, {"tags": "a"}])
def test_settings_that_wandb_would_refuse_are_refused_before_the_run(wrong):
    with pytest.raises(ValidationError):
        WandbSettings(**wrong)


def test_the_environment_counts_where_a_key_has_its_default():
    variables = {
        "WANDB_MODE": "online", "WANDB_PROJECT": "p", "WANDB_ENTITY": "e", "WANDB_NAME": "n", "WANDB_TAGS": "a, b",
        "WANDB_RUN_GROUP": "g", "WANDB_NOTES": "about", "WANDB_JOB_TYPE": "eval",
    }  # fmt: skip
    everything = {
        "mode": "online", "project": "p", "entity": "e", "name": "n", "tags": ["a", "b"], "group": "g",
        "notes": "about", "job_type": "eval",
    }  # fmt: skip
    assert with_environment({}, variables) == everything
    own = {"mode": "disabled", "project": "mine", "tags": ["c"]}
    assert with_environment(own, variables) == {**everything, **own}
    assert with_environment({"mode": "offline"}, variables)["mode"] == "online"
    assert with_environment({"mode": "offline"}, variables, ["mode"])["mode"] == "offline"
    assert with_environment({}, {"WANDB_SWEEP_ID": "s"}) == {"mode": "online"}
    assert with_environment({}, {"WANDB_MODE": "dryrun"}) == {"mode": "offline"}
    with pytest.raises(UserError, match="mode: must be one of offline, online, disabled, got 'onlin'") as caught:
        with_environment({}, {"WANDB_MODE": "onlin"})
    assert caught.value.where == "the environment variable WANDB_MODE"


def test_a_full_disk_is_said_in_one_line(tmp_path):
    """The log of W&B's own fills the disk; Python's logging would show a traceback a line."""
    (tmp_path / "sitecustomize.py").write_text(FULL_DISK)
    result = run(tmp_path / "run", PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    assert "Traceback" not in result.stderr
    assert "Logging error" not in result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["logged"] < 40  # whoever waits for W&B does so for 60


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
    variables = {key: value for key, value in environment().items() if key not in ("HOME", "XDG_CACHE_HOME")}
    result = subprocess.run(
        [sys.executable, "-c", RUN, '{"mode": "offline"}', str(tmp_path / "run"), '[1, 3, ""]'],
        env=variables | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert result.stderr == ""
    (file,) = files(tmp_path / "run")
    assert rows(file) == lines(tmp_path / "run")


NOBODY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""
