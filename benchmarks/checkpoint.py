"""What saving after every round costs, as a share of the round: ResNet18 on images of 32x32 pixels.

    python benchmarks/checkpoint.py --rounds 5

The round is far smaller than one of the FedMef paper (10 clients, 5 epochs, 500 samples each: 25,000 samples of
training), so its share is an upper bound. Rounds and checkpoints alternate, in one process; medians and quartiles.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.config import parse_config
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.runs.snapshot import take
from fedmef_dist.simulation.loop import Simulation

CONFIG = {
    "data": {
        "dataset": "synthetic",
        "synthetic": {"samples": 640, "test_samples": 10},
        "partition": {"scheme": "iid"},
    },
    "model": {"name": "resnet18", "stem": "cifar"},
    "federation": {"clients": 10, "clients_per_round": 4, "rounds": 10**6, "local_epochs": 1, "batch_size": 64},
    "evaluation": {"every": 10**6},
    "checkpoint": {"every": 1, "keep": 2},
}
TRAINED = 4 * 64
PAPER = 10 * 5 * 500


def quartiles(seconds: list[float]) -> str:
    """Median, and the quartiles in brackets."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{middle:.3f} s ({low:.3f} to {high:.3f})"


def measure(method: str, rounds: int) -> None:
    """Plays and saves so many rounds after a first one that warms up."""
    config = parse_config({**CONFIG, "method": {"name": method}}, "this benchmark")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        group = Group(Environment("single", 0, 1, 0, 1, None, None), torch.device("cpu"), "gloo")
        simulation, store = Simulation(config, group), CheckpointStore(Path(folder), config.checkpoint.keep)
        simulation.start()
        played, saved = [], []
        for simulation.round in range(1, rounds + 2):
            began = time.perf_counter()
            simulation.play_round()
            ended = time.perf_counter()
            store.save(take(simulation.round, simulation.parts, {}))
            played.append(ended - began)
            saved.append(time.perf_counter() - ended)
        size = sum(path.stat().st_size for path in Path(folder).rglob("state.*")) / config.checkpoint.keep / 1e6
    round_seconds, save_seconds = statistics.median(played[1:]), statistics.median(saved[1:])
    paper = round_seconds * PAPER / TRAINED
    print(f"{method}: round of {TRAINED} samples {quartiles(played[1:])}")
    print(
        f"  checkpoint {quartiles(saved[1:])}, {size:.1f} MB, {100 * save_seconds / round_seconds:.2f} % of this round,"
    )
    print(f"  {100 * save_seconds / paper:.4f} % of the paper's, 2 % of a round of {50 * save_seconds:.1f} s")


def main() -> None:
    """Prints the shares for a sparse and a dense method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    print(f"{model.partition(': ')[2]}, 1 thread, torch {torch.__version__}, Python {platform.python_version()}")
    for method in ("fedmef", "fedavg"):
        measure(method, options.rounds)


if __name__ == "__main__":
    main()
