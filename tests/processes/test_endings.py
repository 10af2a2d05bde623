"""The end of a run: its status is right whatever stops, signals or closes at that moment, and it comes at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ended, rank_processes, started, wait_for, wait_for_round

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CONFIG = """
name: endings
seed: 3
data: {dataset: digits, partition: {scheme: dirichlet, alpha: 0.5, min_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 20, clients_per_round: 3, rounds: 2, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.1, momentum: 0.5}
method: {name: fedmef, density: 0.4}
evaluation: {every: 2}
checkpoint: {every: 1}
tracking: {wandb: {mode: disabled}}
"""


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def command(tmp_path, run_dir):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return ["-m", "fedmef_dist", "run", tmp_path / "config.yaml", "--run-dir", run_dir]


def last_file(run_dir):
    return max(path.stat().st_mtime for path in run_dir.rglob("*") if path.is_file())


def test_a_stopped_owner_of_the_store_changes_nothing(launchers, command, run_dir):
    """The store is torchrun's: where its agent is stopped, the ranks' threads hang inside the store's client."""
    with started([*launchers["torchrun"](3), *command, "federation.local_epochs=40"]) as process:
        wait_for_round(run_dir, 1, process)
        os.kill(process.pid, signal.SIGSTOP)
        wait_for(run_dir / "summary.json", process)
        time.sleep(1.2)
        os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_behind_the_summary_changes_nothing(launchers, command, run_dir, number):
    with started([*launchers["single"](1), *command]) as process:
        wait_for(run_dir / "summary.json", process)
        process.send_signal(number)
        while number != signal.SIGINT and process.poll() is None:  # two INTs ask to end at once
            process.send_signal(number)
            time.sleep(0.001)
        _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err


# Leaves a file behind where the interpreter comes to its own end, for which it takes a second or two.
LATE = """
class Late:
    def __del__(self, open=open):
        open({!r}, "w").close()

late = Late()
"""


def test_the_process_ends_with_its_last_file(launchers, command, run_dir, tmp_path, monkeypatch):
    late = tmp_path / "late"
    (tmp_path / "sitecustomize.py").write_text(LATE.format(str(late)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    subprocess.run([sys.executable, "-c", ""], check=True)
    late.unlink()
    with started([*launchers["mpirun"](2), *command, "runtime.backend=mpi"]) as process:
        wait_for(run_dir / "metrics.jsonl", process)
        ranks = rank_processes(process.pid)
        while not all(ended(rank) for rank in ranks):
            time.sleep(0.005)
        end = time.time()
        _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert err == ""
    assert not late.exists()
    assert end - last_file(run_dir) < 10


SLOW_AT_THE_END = """
import io, sys, time
from mpi4py import MPI
from fedmef_dist.cluster.ending import end_with

class Slow(io.StringIO):
    def flush(self):
        if MPI.Is_finalized():
            time.sleep(0.5)
            print("whole", file=sys.stderr)

if MPI.COMM_WORLD.rank:
    sys.stdout = Slow()
end_with(lambda: sys.exit(int(sys.argv[1])))
"""


@pytest.mark.parametrize("status", [0, 75])
def test_who_ends_first_under_mpirun_does_not_end_the_others(launchers, tmp_path, status):
    (tmp_path / "slow.py").write_text(SLOW_AT_THE_END)
    with started([*launchers["mpirun"](3), tmp_path / "slow.py", status]) as process:
        _, err = process.communicate(timeout=150)
    assert "signal 9" not in err
    assert err.count("whole") == 2
    assert process.returncode == status


def test_closed_output_changes_nothing(launchers, command, run_dir):
    reader, writer = os.pipe()
    os.close(reader)
    whole = [*launchers["single"](1), *map(str, command)]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(whole, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=150)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((run_dir / "summary.json").read_text())["rounds"] == 2


PROGRAM = """
import signal, sys
import fedmef_dist

def handler(number, frame):
    print("mine", flush=True)

signal.signal(signal.SIGUSR1, handler)
summary = fedmef_dist.run(fedmef_dist.load_config(sys.argv[1]), sys.argv[2])
signal.raise_signal(signal.SIGUSR1)
print(summary.values["rounds"], signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
sys.exit(7)
"""


def test_a_program_of_its_own_goes_on_with_its_own_handlers(command, run_dir):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command[3], run_dir], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[-2:] == ["mine", "2 True"]


def test_under_torchrun_a_mistake_is_said_once_and_nothing_buries_it(command, run_dir):
    """Three lines on standard error, and the rank's own status."""
    script, wrong = Path(__file__).parents[2] / "launch" / "torchrun.sh", "optimizer.lr=fast"
    done = subprocess.run(
        [script, "2", *command[2:], wrong],
        env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "optimizer.lr: must be a number, got 'fast'",
        f"where: {command[3]} with {wrong}",
        "mend: correct optimizer.lr",
    ]
    assert not run_dir.exists()
