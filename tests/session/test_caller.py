"""A program that runs a simulation goes on as if nothing had been; in a notebook the result shows itself."""

import logging
import os
import random
import signal
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny

import fedmef_dist
from fedmef_dist.cluster.ending import SIGNALS
from fedmef_dist.session import session  # its modules add loggers and read no settings of the caller


def everything():
    return {
        "threads of torch": torch.get_num_threads(),
        "environment": dict(os.environ),
        "handlers": [signal.getsignal(number) for number in SIGNALS],
        "logger": (logging.getLogger("fedmef_dist").level, len(logging.getLogger("fedmef_dist").handlers)),
        "generators": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "types": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "working directory": str(Path.cwd()),
    }


def test_a_run_leaves_its_caller_as_it_was_and_shows_itself(tmp_path):
    torch.set_num_threads(2)
    before, threads = everything(), set(threading.enumerate())
    config = tiny(federation={"rounds": 2}, runtime={"threads": 1}, tracking={"wandb": {"mode": "offline"}})
    summary = fedmef_dist.run(config, tmp_path / "run")
    after = everything()
    assert {key: after[key] for key in before if after[key] != before[key]} == {}
    assert set(threading.enumerate()) - threads == set()
    assert str(summary).startswith("2 rounds, accuracy 0.")
    html = summary._repr_html_()
    assert str(summary) in html
    assert f"<td>model/digest</td><td>{summary.values['model/digest']}</td>" in html


def test_a_run_with_every_tracker_ends_with_the_bits_of_one_without_any(tmp_path):
    def digest(name, **tracking):
        config = tiny(federation={"rounds": 3}, checkpoint={"every": 1}, tracking=tracking)
        return fedmef_dist.run(config, tmp_path / name).values["model/digest"]

    wandb = {"mode": "offline", "histograms": True, "artifacts": True, "system_metrics": True, "git": True}
    everything = digest("all", console=True, tensorboard=True, timeline=True, wandb=wandb)
    assert list((tmp_path / "all" / "tensorboard").iterdir())
    assert everything == digest("none")


@pytest.mark.parametrize(("rank", "asked", "lines"), [(0, True, 1), (0, False, 0), (1, True, 0)])
def test_a_signal_is_answered_once_and_by_rank_0(rank, asked, lines, monkeypatch, capsys):
    monkeypatch.setattr(session, "_SECONDS_UNTIL_AN_ANSWER", 0.005)
    grace = types.SimpleNamespace(asked=asked, seconds=30.0)
    said, until = "", time.monotonic() + (60 if lines else 0.1)
    with session._answering(types.SimpleNamespace(grace=grace, group=types.SimpleNamespace(rank=rank))):
        while not said and time.monotonic() < until:
            time.sleep(0.02)
            said += capsys.readouterr().err
        time.sleep(0.05)
    said += capsys.readouterr().err
    assert said.count("this round is finished first, within 30 s") == lines
