"""What choosing, packing and restoring activations and the gate of a ReLU take on a CPU, on inputs of a real network.

    OMP_NUM_THREADS=1 python benchmarks/selection.py
    OMP_NUM_THREADS=1 PYTHONPATH=OTHER_CHECKOUT python benchmarks/selection.py      # another commit, in turns

The inputs are those that the convolutions of ResNet-8 keep half of, in the second round of FedMef on Fashion-MNIST.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.config import parse_config
from fedmef_dist.layers import bits
from fedmef_dist.layers.activation_pruning import observing
from fedmef_dist.layers.kernels import cpu, patterns
from fedmef_dist.simulation.loop import Simulation

CONFIG = {
    "data": {"dataset": "fashion_mnist", "augment": False, "partition": {"scheme": "iid"}},
    "method": {"name": "fedmef", "density": 0.1},
    "model": {"name": "resnet8"},
    "sap": {"prune_ratio": 0.5},
    "federation": {"clients": 100, "clients_per_round": 2, "rounds": 100, "local_epochs": 1, "batch_size": 32},
}


def inputs(most: int) -> list[Tensor]:
    """Patterns of the first inputs of the second round from which some are chosen, (n,) each."""
    group = Group(Environment("single", 0, 1, 0, 1, None, None), torch.device("cpu"), "gloo")
    simulation = Simulation(parse_config(CONFIG, "benchmarks/selection.py"), group)
    simulation.start()
    simulation.round = 1
    simulation.play_round()
    found: list[Tensor] = []

    def observe(x: Tensor, _: object) -> None:
        row = patterns(bits.flatten(x.detach())).clone()
        if len(found) < most and cpu.count_from(row, 1) > len(row) // 2:
            found.append(row)

    simulation.round = 2
    with observing(observe):
        simulation.play_round()
    return found


def median(action: Callable[[], object], repeats: int) -> float:
    """Seconds of an action that has been done once before."""
    action()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def actions(row: Tensor) -> dict[str, Callable[[], object]]:
    """What is done to an input (n,) of which half is kept, by name."""
    count = len(row) // 2
    threshold, end = cpu.find_threshold(row, count)
    bitmap, values = torch.zeros((len(row) + 7) // 8, dtype=torch.uint8), row.new_empty(count)
    back, gate = torch.empty_like(row), cpu.pack_between(row, torch.iinfo(row.dtype).max)
    return {
        "threshold": lambda: cpu.find_threshold(row, count),
        "pack": lambda: cpu.pack(row, threshold, end, bitmap, values),
        "unpack": lambda: cpu.unpack(bitmap, values, back),
        "gate": lambda: cpu.select(gate, row),
    }


def main() -> None:
    """Prints means over the inputs, of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, taken = inputs(options.inputs), defaultdict(list)
    for row in rows:
        for name, action in actions(row).items():
            taken[name].append(median(action, options.repeats))
    sizes = [len(row) for row in rows]
    print(f"{len(rows)} inputs of {min(sizes):,} to {max(sizes):,} elements, mean {np.mean(sizes):,.0f}")
    for name, seconds in taken.items():
        print(f"{name:10s} {1e6 * np.mean(seconds):7.1f} µs, at most {1e6 * max(seconds):7.1f}")


if __name__ == "__main__":
    main()
