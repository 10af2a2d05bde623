"""Whole rounds, training included: cohorts of 10 to 100,000 clients, populations of 100 to a million.

    python benchmarks/client_counts.py                                          # under 5 minutes on two idle cores
    python benchmarks/client_counts.py --cohorts 1000000 --populations          # a million clients in one round
    python benchmarks/client_counts.py --cohorts 1000 --populations 100 -- method.name=fedmef

FedAvg with a tiny model on the bundled digits; a client is drawn when it is asked for and has about 10 samples, so that
nearly all of a large round is what a client costs whatever it trains. Each row is a run of its own on two ranks, which
ends with an evaluation. Its first round is left out where it has more than one. Memory is that of the larger process.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fedmef_dist.cluster.local_ranks import run_ranks

CONFIG = """
name: client-counts
seed: 0
data: {dataset: digits, augment: false, partition: {scheme: lazy_dirichlet, alpha: 0.5, client_samples: 10}}
model: {name: cnn, width: 0.25, hidden: 8}
federation: {clients: 1000000, clients_per_round: 10, rounds: 1, local_epochs: 1, batch_size: 32}
optimizer: {lr: 0.01, schedule: constant}
method: {name: fedavg}
evaluation: {every: 1000000}
checkpoint: {every: 1000000}
tracking: {console: false, wandb: {mode: disabled}}
"""
HEADER = ("Population", "Cohort", "A round (s)", "A client (ms)", "Beside the clients (ms)", "Memory (MB)", "Log (kB)")
MANY = 10_000  # clients, from which on few rounds are enough


def measure(population: int, cohort: int, ranks: int, overrides: list[str], folder: Path) -> list[str]:
    """A row, from a process that has no other children."""
    rounds = 6 if cohort < MANY else 2 if cohort == MANY else 1
    config, run_dir = folder / "config.yaml", folder / "run"
    config.write_text(CONFIG)
    settings = [f"federation.clients={population}", f"federation.clients_per_round={cohort}", *overrides]
    arguments = ["run", str(config), *settings, f"federation.rounds={rounds}", "--run-dir", str(run_dir)]
    with (folder / "output").open("wb") as output:
        status = run_ranks(arguments, ranks, output)
    if status:
        raise SystemExit(f"the run ended with {status}:\n{(folder / 'output').read_text()}")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = lines[1:] or lines
    whole, train = (statistics.median(line[f"time/{name}"] for line in lines) for name in ("round", "train"))
    beside = statistics.median(line["time/round"] - line["time/train"] - line["time/wait"] for line in lines)
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    log = (run_dir / "logs" / "rank-000.log").stat().st_size / 1e3
    numbers = (
        f"{whole:.3f}",
        f"{1000 * train * ranks / cohort:.2f}",
        f"{1000 * beside:.1f}",
        f"{memory:.0f}",
        f"{log:.0f}",
    )
    return [f"{population:,}", f"{cohort:,}", *numbers]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, nargs="*", default=[10, 100, 1000, 10_000, 100_000], help="of a million")
    parser.add_argument("--populations", type=int, nargs="*", default=[100, 1000, 10_000, 100_000], help="10 a round")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print("| " + " | ".join(measure(*options.one, options.ranks, options.overrides, Path(folder))) + " |")
        return
    print("| " + " | ".join(HEADER) + " |")
    print("| " + " | ".join(["---:"] * len(HEADER)) + " |", flush=True)
    rows = [*((clients, 10) for clients in options.populations), *((1_000_000, cohort) for cohort in options.cohorts)]
    for population, cohort in rows:
        one = ["--one", str(population), str(cohort), "--ranks", str(options.ranks), "--", *options.overrides]
        subprocess.run([sys.executable, __file__, *one], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
