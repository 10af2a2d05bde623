"""Preempts runs on a real Slurm at random moments and compares their digests with that of an undisturbed run.

    python benchmarks/preemptions.py --preemptions 20 --seed 0

Starts a Slurm of two nodes on this machine. Jobs of slurm/multi_node.sbatch, in turn two ranks on two nodes and three
on one, get `scancel --signal=USR2` again and again; each time the batch script requeues them. A preemption counts as
passed where the job came back and its run ended with every round once and with the undisturbed digest.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "processes"))

from slurm import ENDED, SlurmCluster  # noqa: E402

CONFIG = """
name: preempted
seed: 3
data: {dataset: digits, partition: {scheme: dirichlet, alpha: 0.5, min_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 32}
federation: {clients: 20, clients_per_round: 5, rounds: 200, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.1, momentum: 0.5}
method: {name: fedmef, density: 0.4, adjust_every: 2, adjust_until: 150}
evaluation: {every: 10}
checkpoint: {every: 10}
tracking: {console: false, wandb: {mode: disabled}}
"""
PLACES = (("--nodes=2", "--ntasks-per-node=1"), ("--nodes=1", "--ntasks-per-node=3"))
A_JOB = 4
# The run begins to listen to signals a little before its log says that it starts.
LATEST_SECONDS = 4.0


def undisturbed(config: Path, folder: Path) -> dict[str, object]:
    """The summary of the run on one rank, without Slurm."""
    command = [sys.executable, "-m", "fedmef_dist", "run", str(config), "--run-dir", str(folder / "undisturbed")]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((folder / "undisturbed" / "summary.json").read_text())


def starts(run_dir: Path) -> int:
    """How often rank 0 has begun."""
    log = run_dir / "logs" / "rank-000.log"
    return log.read_text().count("INFO start: ") if log.exists() else 0


def wait_until(condition, what: str, seconds: float = 900.0) -> None:
    """Polls; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


class Job:
    """A batch job whose run is preempted."""

    def __init__(self, cluster: SlurmCluster, config: Path, run_dir: Path, place: tuple[str, str]) -> None:
        self.cluster, self.run_dir = cluster, run_dir
        options = [*place, "--cpus-per-task=1", f"--output={run_dir}.log", ROOT / "slurm" / "multi_node.sbatch"]
        env = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "MAX_RESTARTS": "100"}
        self.number = cluster.submit(options, config, "--run-dir", run_dir, env=env, cwd=ROOT)
        self.preemptions = 0

    @property
    def state(self) -> dict[str, str]:
        """What the controller knows."""
        return self.cluster.jobs(self.number)[0]

    def preempt(self, delay: float) -> bool:
        """Signals the ranks some seconds after they began, waits for the requeue; False where the run ended first."""
        wait_until(lambda: starts(self.run_dir) > self.preemptions or self.state["JobState"] in ENDED, "start")
        time.sleep(delay)
        if self.state["JobState"] != "RUNNING":
            return False
        self.cluster.run(["scancel", "--signal=USR2", self.number])
        before = self.preemptions
        wait_until(lambda: int(self.state["Restarts"]) > before or self.state["JobState"] in ENDED, "requeue")
        self.preemptions = int(self.state["Restarts"])
        return self.preemptions > before

    def passed(self, digest: object, rounds: int) -> bool:
        """Waits for the end; whether every round is there once and the digest is right."""
        wait_until(lambda: self.state["JobState"] in ENDED, "end")
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        whole = [json.loads(line)["round"] for line in lines] == list(range(1, rounds + 1))
        summary = self.run_dir / "summary.json"
        right = summary.exists() and json.loads(summary.read_text())["model/digest"] == digest
        return self.state["JobState"] == "COMPLETED" and whole and right


def main() -> None:
    """Reads the command line, preempts, and prints the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preemptions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    moments, total, passed, number = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.yaml"
        config.write_text(CONFIG)
        reference = undisturbed(config, folder)
        cluster = SlurmCluster()
        try:
            while total < options.preemptions:
                job = Job(cluster, config, folder / f"run-{number}", PLACES[number % len(PLACES)])
                while job.preemptions < min(A_JOB, options.preemptions - total):
                    if not job.preempt(moments.uniform(0.0, LATEST_SECONDS)):
                        break
                right = job.passed(reference["model/digest"], reference["rounds"])
                total, passed, number = total + job.preemptions, passed + right * job.preemptions, number + 1
                print(f"job {number}: {job.preemptions} preemptions, {'same' if right else 'WRONG'} digest", flush=True)
        finally:
            cluster.close()
    print(f"{passed} of {total} preemptions passed, seed {options.seed}")
    sys.exit(passed != total)


if __name__ == "__main__":
    main()
