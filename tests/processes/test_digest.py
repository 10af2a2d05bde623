"""The same configuration and seed give the same bits, whoever starts the ranks and however many there are."""

import json
import os
import signal
import sys
import time

import pytest
from processes import rank_processes, started, wait_for_round

import fedmef_dist

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CONFIG = """
name: digest
seed: 3
data: {dataset: digits, partition: {scheme: dirichlet, alpha: 0.5, min_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 20, clients_per_round: 5, rounds: 8, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.1, momentum: 0.5}
method: {name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 8}
evaluation: {every: 4}
checkpoint: {every: 1}
tracking: {wandb: {mode: disabled}}
"""

METHODS = (
    *("fedmef", "fedavg", "feddst", "fedrts", "fedsgc", "fedtiny", "prunefl", "static"),
    *("scaffold", "feddyn", "ditto"),
)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("digest") / "config.yaml"
    path.write_text(CONFIG)
    return path


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


# What a run is called here: what it asks for.
RUNS = {
    **{name: [f"method.name={name}"] for name in METHODS},
    "scaffold": ["method.name=scaffold", "optimizer.momentum=0"],
    "adam": ["server_optimizer.name=adam", "server_optimizer.lr=0.01"],
    "snip": ["method.name=static", "method.criterion=snip", "method.scores=clients"],
    "synflow": ["method.name=static", "method.criterion=synflow"],
    "statistics": ["method.name=fedtiny", "model.name=resnet8", "model.norm=batch", "federation.rounds=3"],
}


@pytest.fixture(scope="session")
def undisturbed(config, launch, tmp_path_factory):
    """The digest of each of the runs on one rank, of one thread as the ranks have; FedMef's as a command."""
    folder, digests = tmp_path_factory.mktemp("alone"), {}
    for name, options in RUNS.items():
        if name == "fedmef":
            done = launch("single", 1, "-m", "fedmef_dist", "run", config, *options, "--run-dir", folder / name)
            assert done.returncode == 0, done.stderr
        else:
            own = fedmef_dist.load_config(config, [*options, "runtime.threads=1", "tracking.console=false"])
            fedmef_dist.run(own, folder / name)
        digests[name] = summary(folder / name)["model/digest"]
    assert digests["ditto"] == digests["fedavg"]  # its clients' own models are beside the global one
    assert len({*digests.values()}) == len(RUNS) - 1
    return digests


@pytest.mark.parametrize(
    ("launcher", "ranks", "name", "extra"),
    [
        ("torchrun", 2, "fedmef", []),
        ("torchrun", 3, "fedmef", []),
        ("torchrun", 4, "fedmef", []),
        ("mpirun", 2, "fedmef", []),
        ("mpirun", 3, "fedmef", ["runtime.backend=mpi"]),
        ("torchrun", 2, "fedavg", []),
        ("mpirun", 3, "fedavg", []),
        *[("torchrun", 3, name, []) for name in ("adam", "snip", "synflow", "statistics")],
        *[("torchrun", ranks, method, []) for method in METHODS[2:] for ranks in (2, 3)],
    ],
)
def test_any_launcher_any_number_of_ranks(config, undisturbed, launch, tmp_path, launcher, ranks, name, extra):
    run_dir = tmp_path / "run"
    arguments = ["run", config, *RUNS[name], *extra, "--run-dir", run_dir]
    done = launch(launcher, ranks, "-m", "fedmef_dist", *arguments)
    assert done.returncode == 0, done.stderr
    result = summary(run_dir)
    assert result["world_size"] == ranks
    assert result["launcher"] == {"torchrun": "torchrun", "mpirun": "mpich"}[launcher]
    assert result["model/digest"] == undisturbed[name]


@pytest.mark.parametrize("method", ["fedmef", "fedavg"])
def test_srun_on_two_nodes(config, undisturbed, slurm, tmp_path, method):
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "fedmef_dist", "run", config, f"method.name={method}", "--run-dir", run_dir]
    done = slurm.srun(command, ntasks=2, nodes=2, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert summary(run_dir)["launcher"] == "srun"
    assert summary(run_dir)["model/digest"] == undisturbed[method]


def test_a_killed_run_resumes_on_another_number_of_ranks_to_the_same_bits(
    config, undisturbed, launchers, launch, tmp_path
):
    run_dir = tmp_path / "run"
    arguments = ["-m", "fedmef_dist", "run", config, "--run-dir", run_dir]
    with started([*launchers["torchrun"](2), *arguments]) as process:
        wait_for_round(run_dir, 1, process)
        victim = rank_processes(process.pid)[-1]
        wait_for_round(run_dir, 2, process)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        process.communicate(timeout=100)
    assert process.returncode != 0
    assert time.monotonic() - killed < 30
    assert not (run_dir / "summary.json").exists()
    done = launch("torchrun", 3, *arguments)
    assert done.returncode == 0, done.stderr
    assert summary(run_dir)["model/digest"] == undisturbed["fedmef"]
    rounds = [json.loads(line)["round"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 9))
