"""What each tracker costs: seconds of a round of W2 with and without it, in the same process, one after the other.

    python benchmarks/trackers.py --turns 20

In each turn every tracker gets one round. The clock runs from before the tracker is told of a round until the next
round is done, so that what its threads do beside the training counts too. Printed are the milliseconds that telling
takes, and the median over the turns of the round's time as a multiple of that without a tracker in the same turn. W&B
is offline, once with what it sends by default and once with histograms and system metrics.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group
from fedmef_dist.config import parse_config, to_tree
from fedmef_dist.session.session import histogram_data
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.console import LineTracker, View
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.settings import WandbSettings
from fedmef_dist.tracking.tensorboard import TensorboardTracker
from fedmef_dist.tracking.tracker import Tracker
from fedmef_dist.tracking.wandb import WandbTracker

sys.path.insert(0, str(Path(__file__).parent))
from round import COMMON, WORKLOADS

NONE = "no tracker"


class Nothing(Tracker):
    def log(self, metrics):
        pass


def trackers(folder: Path, simulation: Simulation) -> dict[str, Tracker]:
    tree, cohort = to_tree(simulation.config), simulation.group.watch.cohort
    everything = WandbSettings(histograms=True, system_metrics=True)
    makers: dict[str, Callable[[Path], Tracker]] = {
        NONE: lambda place: Nothing(),
        "metrics.jsonl": lambda place: JsonlTracker(place / "metrics.jsonl", None),
        "lines": lambda place: LineTracker(View(10**6, 0, cohort), open(os.devnull, "w")),  # noqa: PTH123, SIM115
        "W&B": lambda place: WandbTracker(WandbSettings(), place, tree),
        "W&B, everything": lambda place: WandbTracker(everything, place, tree, 0, lambda: histogram_data(simulation)),
        "TensorBoard": TensorboardTracker,
    }
    places = {name: folder / str(number) for number, name in enumerate(makers)}
    for place in places.values():
        place.mkdir()
    return {name: make(places[name]) for name, make in makers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--clients", type=int, default=100, help="of a round")
    options = parser.parse_args()
    tree = COMMON | WORKLOADS["W2"]
    tree["federation"] = tree["federation"] | {"clients_per_round": options.clients}
    tree["tracking"] = {"wandb": {"histograms": True}}
    with tempfile.TemporaryDirectory() as folder, open_group(detect(os.environ), RuntimeSettings(threads=1)) as group:
        simulation = Simulation(parse_config(tree, "W2"), group)
        simulation.start()
        found = trackers(Path(folder), simulation)
        turns: list[dict[str, tuple[float, float]]] = []
        metrics = play(simulation)
        for _ in range(options.turns + 1):  # the first one warms up, and W&B starts in it
            turn = {}
            for name, tracker in found.items():
                start = time.perf_counter()
                tracker.log({**metrics, "round": len(turns) + 1})
                told = time.perf_counter()
                metrics = play(simulation)
                turn[name] = told - start, time.perf_counter() - start
            turns.append(turn)
        for tracker in found.values():
            tracker.close()
    print(f"W2, {options.clients} clients a round, {options.turns} turns, torch {torch.__version__}")
    for name in found:
        telling = 1000 * median(turn[name][0] for turn in turns[1:])
        whole = median(turn[name][1] for turn in turns[1:])
        ratio = median(turn[name][1] / turn[NONE][1] for turn in turns[1:])
        print(f"{name:16} telling {telling:7.3f} ms  round {whole:7.3f} s  {ratio:.4f} x")


def play(simulation: Simulation):
    simulation.round += 1
    return {"round": simulation.round, **simulation.play_round()}


if __name__ == "__main__":
    main()
