"""Runs as `wandb agent` starts them, with its default arguments: each in a directory of its own."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from tiny import TREE, tiny

from fedmef_dist.config import load_config
from fedmef_dist.session.session import default_run_dir

PROGRAM = """
import sys
import fedmef_dist

fedmef_dist.run(fedmef_dist.load_config("tiny.yaml", sys.argv[1:]))
"""


def test_three_trials_have_three_directories_and_three_results(tmp_path):
    """The command that the agent makes of its default form: env, interpreter, program, --key=value."""
    sweeps = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TREE, "federation": {**TREE["federation"], "rounds": 1}}))
    (tmp_path / "trial.py").write_text(PROGRAM)
    digests = set()
    for trial, values in (
        ("t1", {"optimizer.lr": 0.1, "seed": 0}),
        ("t2", {"optimizer.lr": 1e-05, "seed": 0, "data.augment": False, "device.budget": None}),
        ("t3", {"optimizer.lr": 0.1, "seed": 1}),
    ):
        arguments = sweeps.create_sweep_command_args({"args": {key: {"value": one} for key, one in values.items()}})
        command = ["/usr/bin/env", sys.executable, "trial.py", *arguments["args"]]
        environ = os.environ | {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": trial, "WANDB_MODE": "disabled"}
        subprocess.run(command, cwd=tmp_path, env=environ, check=True, timeout=120)
        summary = json.loads((tmp_path / "runs" / f"tiny-{trial}" / "summary.json").read_text())
        digests.add(summary["model/digest"])
    assert len(digests) == 3
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny-t1", "tiny-t2", "tiny-t3"]


def test_a_directory_is_a_trials_own_only_under_an_agent():
    config = tiny()
    assert str(default_run_dir(config, {})) == "runs/tiny"
    assert str(default_run_dir(config, {"WANDB_RUN_ID": "x"})) == "runs/tiny"
    assert str(default_run_dir(config, {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "x"})) == "runs/tiny-x"


def test_the_resolved_configuration_says_what_the_environment_said(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    path = tmp_path / "x.yaml"
    path.write_text("tracking: {wandb: {tags: [mine]}}\n")
    wandb = load_config(path).tracking.wandb
    assert (wandb.project, wandb.tags) == ("theirs", ["mine"])
    assert load_config(path, ["tracking.wandb.project=fedmef"]).tracking.wandb.project == "fedmef"
