"""What a cluster does to a run: signals, dead and hung ranks, damaged files, full disks; and how it goes on."""

import json
import os
import resource
import signal
import time

import pytest
from processes import rank_processes, started, wait_for_round

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# Rounds of some tenths of a second, clients of some hundredths.
CONFIG = """
name: failures
seed: 3
data: {dataset: digits, partition: {scheme: dirichlet, alpha: 0.5, min_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 20, clients_per_round: 6, rounds: 6, local_epochs: 8, batch_size: 32}
optimizer: {lr: 0.05, momentum: 0.5}
method: {name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 8}
evaluation: {every: 3}
checkpoint: {every: 1}
tracking: {wandb: {mode: disabled}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("failures") / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def undisturbed(config, launchers, tmp_path_factory):
    """The digest of a run that a full disk did not let finish, and that ended after there was room again.

    The disk took no checkpoint and only a few metrics, so that it began anew: nothing else disturbed it.
    """
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run = command(launchers["single"], 1, config, run_dir)
    with started(run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))) as process:
        _, err = process.communicate(timeout=200)
    assert process.returncode == 2, err
    assert err.count(" cannot be written: File too large; the run goes on") == 2
    assert err.count("checkpoints cannot be written") == 1
    assert err.count("all rounds are done, but rounds ") == 1
    assert "missing in metrics.jsonl: File too large" in err
    assert not any((run_dir / "checkpoints").iterdir())
    assert not (run_dir / "summary.json").exists()
    assert (run_dir / "metrics.jsonl").stat().st_size <= 3000
    with started(run) as process:
        _, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    return digest(run_dir)


def digest(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["model/digest"]


def saved(run_dir, number):
    return run_dir / "checkpoints" / f"round-{number:06d}"


def command(launcher, ranks, config, run_dir, *more):
    return [*launcher(ranks), "-m", "fedmef_dist", "run", config, *more, "--run-dir", run_dir]


def test_a_second_start_is_refused_and_does_the_first_one_no_harm(config, launchers, launch, tmp_path):
    run_dir = tmp_path / "run"
    with started(command(launchers["mpirun"], 2, config, run_dir, "federation.rounds=900")) as process:
        wait_for_round(run_dir, 1, process)
        second = launch(
            "torchrun", 2, "-m", "fedmef_dist", "run", config, "federation.rounds=900", "--run-dir", run_dir
        )
        before_torchruns_report = second.stderr.partition("=====")[0]
        assert before_torchruns_report.count(f"another run is writing here: on {os.uname().nodename}, pid ") == 1
        os.kill(rank_processes(process.pid)[1], signal.SIGUSR1)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    checked = launch("single", 1, "-m", "fedmef_dist", "status", run_dir, "--verify")
    assert (checked.returncode, checked.stdout.split("\n")[0]) == (0, f"{run_dir}: stopped, verified")


def test_a_signal_to_one_rank_stops_all_and_a_damaged_checkpoint_falls_back(
    config, launchers, undisturbed, launch, tmp_path
):
    run_dir = tmp_path / "run"
    with started(command(launchers["mpirun"], 2, config, run_dir, "runtime.backend=mpi")) as process:
        wait_for_round(run_dir, 2, process)
        os.kill(rank_processes(process.pid)[1], signal.SIGUSR1)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    assert err.count("stopped by a signal after ") == 1
    assert not (run_dir / "summary.json").exists()
    newest = max((run_dir / "checkpoints").glob("round-*"))
    assert newest != saved(run_dir, 6)

    data = bytearray((newest / "state.safetensors").read_bytes())
    data[-5] ^= 4
    (newest / "state.safetensors").write_bytes(data)
    done = launch("torchrun", 3, "-m", "fedmef_dist", "run", config, "--run-dir", run_dir, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"the checkpoint is broken: its content is not what was written; where: {newest};") == 1
    assert digest(run_dir) == undisturbed
    rounds = [json.loads(line)["round"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 7))


def test_a_round_that_does_not_fit_is_abandoned_by_all(config, launchers, tmp_path):
    run_dir = tmp_path / "run"
    settings = ["checkpoint.grace=0.0", "federation.local_epochs=30"]
    with started(command(launchers["mpirun"], 2, config, run_dir, *settings)) as process:
        wait_for_round(run_dir, 1, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 75, err
    for rank in range(2):
        log = (run_dir / "logs" / f"rank-00{rank}.log").read_text()
        assert log.count("abandoned, it does not fit the time left after a signal") == 1
        assert log.splitlines()[-1].endswith("stopped by SystemExit(75)")


def test_torchruns_own_end_reaches_the_ranks(config, launchers, tmp_path):
    run_dir = tmp_path / "run"
    with started(command(launchers["torchrun"], 2, config, run_dir)) as process:
        wait_for_round(run_dir, 1, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=100)
    assert process.returncode not in (0, 75)  # the agent's status is its own
    assert err.count("stopped by a signal after ") == 1
    assert not (run_dir / "summary.json").exists()


def test_a_dead_rank_is_named_and_torchrun_starts_again_from_the_checkpoint(config, launchers, undisturbed, tmp_path):
    run_dir = tmp_path / "run"

    def launcher(ranks):
        return [*launchers["torchrun"](ranks), "--max-restarts", "1"]

    with started(command(launcher, 2, config, run_dir)) as process:
        wait_for_round(run_dir, 2, process)
        victim = rank_processes(process.pid)[1]
        log = run_dir / "logs" / "rank-001.log"
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        first = log.read_text()
        while log.read_text().count("start: ") == 1:
            assert process.poll() is None
            assert time.monotonic() - killed < 120
            time.sleep(0.05)
        _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    (line,) = [line for line in err.splitlines() if "a peer is gone" in line]
    in_round = first.splitlines()[-1].partition("INFO ")[2].partition(":")[0]
    assert line.startswith("rank 0 of 2 on ")
    assert f"; no answer from rank 1 on {os.uname().nodename}, last seen in round " in line
    assert in_round.startswith("round ")
    assert digest(run_dir) == undisturbed


def test_a_hung_rank_hits_the_timeout_and_is_named(config, launchers, tmp_path):
    run_dir = tmp_path / "run"
    settings = ["runtime.timeout=12"]
    with started(command(launchers["mpirun"], 2, config, run_dir, *settings)) as process:
        wait_for_round(run_dir, 1, process)
        os.kill(rank_processes(process.pid)[1], signal.SIGSTOP)
        _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    (line,) = [line for line in err.splitlines() if "a peer is gone" in line]
    assert line.startswith("rank 0 of 2 on ")
    assert "Timed out" in line
    assert f"; no answer from rank 1 on {os.uname().nodename}, last seen in round " in line


def test_a_stopped_rank_is_named_within_half_a_minute_also_where_it_keeps_the_store(
    config, launchers, undisturbed, tmp_path
):
    run_dir = tmp_path / "run"
    with started(command(launchers["mpirun"], 2, config, run_dir)) as process:
        wait_for_round(run_dir, 1, process)
        time.sleep(0.3)  # rank 1 looks four times a second where rank 0 is
        os.kill(rank_processes(process.pid)[0], signal.SIGSTOP)
        stopped = time.monotonic()
        _, err = process.communicate(timeout=100)
    assert time.monotonic() - stopped < 60  # on a machine that has time for it
    assert process.returncode != 0
    (line,) = [line for line in err.splitlines() if "no sign of life for 20 s" in line]
    assert line.startswith("rank 1 of 2 on ")
    assert f": no answer from rank 0 on {os.uname().nodename}, last seen in round " in line
    with started(command(launchers["single"], 1, config, run_dir)) as process:
        _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert digest(run_dir) == undisturbed
