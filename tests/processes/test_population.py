"""Clients that come and go, and clients that keep something: the same bits on any number of ranks."""

import json

import pytest

import fedmef_dist

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LAZY = """
data:
  dataset: digits
  partition: {scheme: lazy_dirichlet, client_samples: 30}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 100000, clients_per_round: 6, rounds: 4, local_epochs: 1, batch_size: 16, weighting: uniform,
             availability: 0.5, oversample: 1.5, dropout: 0.2, speed_sigma: 0.5, deadline: 2.0}
optimizer: {lr: 0.1}
method: {name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 8}
evaluation: {every: 2, per_client: 20, client_groups: label}
tracking: {wandb: {mode: disabled}}
"""
SILOS = """
data: {dataset: digits, partition: {scheme: quantity}}
model: {name: resnet8, width: 0.25, norm: batch}
federation: {clients: 5, clients_per_round: 4, rounds: 3, local_epochs: 1, batch_size: 32, client_state: both}
optimizer: {lr: 0.05, momentum: 0.9, schedule: constant}
method: {name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 8}
evaluation: {every: 1, per_client: 5, client_groups: size}
checkpoint: {every: 1}
tracking: {wandb: {mode: disabled}}
"""
TIMED = ("time/", "cluster/", "memory/")


def alone(text, folder):
    path = folder / "config.yaml"
    path.write_text(text)
    fedmef_dist.run(fedmef_dist.load_config(path), folder / "alone")
    return path


def metrics(run_dir):
    """Every round's metrics but for those that tell of this machine."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows]


def test_clients_that_come_and_go(launch, tmp_path):
    config = alone(LAZY, tmp_path)
    done = launch("torchrun", 3, "-m", "fedmef_dist", "run", config, "--run-dir", tmp_path / "three")
    assert done.returncode == 0, done.stderr
    rounds = metrics(tmp_path / "alone")
    assert metrics(tmp_path / "three") == rounds
    assert all(row["clients/trained"] + row["clients/dropped"] + row["clients/surplus"] == 9 for row in rounds)
    assert sum(row["clients/dropped"] for row in rounds) > 0


def test_clients_that_keep_their_state_over_a_resume_on_another_number_of_ranks(launch, tmp_path):
    config = alone(SILOS, tmp_path)
    arguments = ["-m", "fedmef_dist", "run", config, "--run-dir", tmp_path / "parts"]
    for ranks, rounds in ((2, 2), (3, 3)):
        done = launch("torchrun", ranks, *arguments, f"federation.rounds={rounds}")
        assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "alone")
