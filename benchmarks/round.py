"""Seconds a FedAvg round takes, beside a plain PyTorch loop that trains the same clients on the same batches.

Start it with two ranks of one thread each:

    torchrun --standalone --nproc-per-node 2 benchmarks/round.py

W1 is Fashion-MNIST with 100 clients, W2 has 1,000 clients of 60 samples. Both programs run in the same processes, one
round of ours, one of the plain loop, and so on; a ratio below 1 means that ours is faster.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import Group, RuntimeSettings, open_group
from fedmef_dist.config import parse_config
from fedmef_dist.data.batches import normalise
from fedmef_dist.models.small import cnn
from fedmef_dist.simulation.loop import Simulation

# No round is evaluated, logged or saved: only training, aggregation and the ledgers are timed.
COMMON = {
    "method": {"name": "fedavg"},
    "optimizer": {"lr": 0.05, "schedule": "constant"},
    "evaluation": {"every": 10**7},
}
WORKLOADS = {
    "W1": {
        "data": {
            "dataset": "fashion_mnist",
            "augment": False,
            "partition": {"scheme": "dirichlet", "alpha": 0.5},
        },
        "model": {"name": "cnn"},
        "federation": {
            "clients": 100,
            "clients_per_round": 10,
            "rounds": 10**6,
            "local_epochs": 1,
            "batch_size": 32,
        },
    },
    "W2": {
        "data": {"dataset": "fashion_mnist", "augment": False, "partition": {"scheme": "iid"}},
        "model": {"name": "cnn", "width": 0.25, "hidden": 0},
        "federation": {
            "clients": 1000,
            "clients_per_round": 100,
            "rounds": 10**6,
            "local_epochs": 1,
            "batch_size": 20,
        },
    },
}


class PlainLoop:
    """FedAvg as one writes it by hand: a stock model, ``torch.optim.SGD``, state dicts, one all-reduce a tensor.

    The images lie ready in memory as normalised floats, so that a batch is one indexing; a DataLoader over the same
    tensors takes longer. The model is loaded, not copied, for each client; a deep copy takes longer.

    ``memory_format`` is torch's default one, or channels_last, with which torch's own layers are quicker too.
    """

    def __init__(self, simulation: Simulation, memory_format: torch.memory_format) -> None:
        self.config, self.population = simulation.config, simulation.population
        self.rank, self.world_size = simulation.group.rank, simulation.group.world_size
        dataset = simulation.dataset
        images = normalise(dataset, dataset.train.images.permute(0, 2, 3, 1))
        # Grey images count as contiguous in either order; a new tensor has the strides of the one that is meant.
        self.images = torch.empty(images.shape, memory_format=memory_format).copy_(images)
        self.labels = dataset.train.labels
        channels, size, _ = dataset.shape
        settings = self.config.model
        self.model = cnn(dataset.classes, channels, size, settings.width, settings.hidden)
        self.model.to(memory_format=memory_format)
        self.model.load_state_dict(simulation.model.state_dict())
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def play_round(self, number: int) -> float:
        """Trains every client of the round on the rank that its place gives it; returns the mean training loss."""
        federation, seed = self.config.federation, self.config.seed
        cohort = draw_cohort(self.population, federation, seed, number)
        total = {name: torch.zeros_like(value) for name, value in self.state.items()}
        loss = 0.0
        for client in cohort.clients[self.rank :: self.world_size]:
            self.model.load_state_dict(self.state)
            indices = torch.from_numpy(self.population.samples(client))
            loss += self.train(indices, torch_generator(seed, "order", number, int(client)))
            for name, value in self.model.state_dict().items():
                total[name] += len(indices) * value
        samples = int(cohort.samples.sum())
        for name, value in total.items():
            dist.all_reduce(value)
            self.state[name] = value / samples
        return loss / samples

    def train(self, indices: Tensor, generator: torch.Generator) -> float:
        """One client; returns the sum of its samples' losses."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.config.optimizer.lr)
        images, labels = self.images[indices], self.labels[indices]
        total = 0.0
        self.model.train()
        for _ in range(self.config.federation.local_epochs):
            for rows in torch.randperm(len(indices), generator=generator).split(self.config.federation.batch_size):
                optimizer.zero_grad()
                loss = F.cross_entropy(self.model(images[rows]), labels[rows])
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
        return total


@dataclass(frozen=True)
class Timing:
    """One round on the slowest rank: wall seconds, and processor seconds of all ranks together."""

    wall: float
    processor: float


def timed(action: Callable[[], object]) -> Timing:
    """Runs ``action`` on all ranks at once."""
    dist.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    action()
    walls = torch.tensor(time.perf_counter() - wall, dtype=torch.float64)
    processors = torch.tensor(time.process_time() - processor, dtype=torch.float64)
    dist.all_reduce(walls, dist.ReduceOp.MAX)
    dist.all_reduce(processors)
    return Timing(walls.item(), processors.item())


def compare(name: str, group: Group, warm_up: int, rounds: int, memory_format: torch.memory_format) -> None:
    """Plays both programs' rounds in turn and prints what they took."""
    simulation = Simulation(parse_config(COMMON | WORKLOADS[name], name), group)
    simulation.start()
    plain = PlainLoop(simulation, memory_format)
    pairs, start = [], simulation.server.values
    for number in range(1, warm_up + rounds + 1):
        simulation.round = number
        pairs.append((timed(simulation.play_round), timed(lambda number=number: plain.play_round(number))))
        if number == 1:
            check_agreement(simulation, plain, start)
    if group.rank == 0:
        print(report(name, simulation, pairs[warm_up:]), flush=True)


def check_agreement(simulation: Simulation, plain: PlainLoop, start: Tensor) -> None:
    """The same clients on the same batches: the first round changes both models alike.

    Kernels of different memory formats round differently, and hundreds of steps carry that on: a few percent of the
    change. Other batches or another order of the samples differ by about as much as the change itself.
    """
    ours, difference = simulation.server.values - start, 0.0
    simulation.space.load(simulation.server.values)
    for name, value in simulation.model.state_dict().items():
        difference += (value - plain.state[name]).square().sum().item()
    assert difference**0.5 < 0.1 * ours.norm().item(), "the two programs do not train alike"


def report(name: str, simulation: Simulation, pairs: list[tuple[Timing, Timing]]) -> str:
    """One line for each clock: medians over rounds, ratio of medians, quartiles of the rounds' own ratios."""
    lines = [f"{name}: {simulation.space.n_parameters:,} parameters, {len(pairs)} rounds"]
    for clock in ("wall", "processor"):
        ours, plain = (np.array([getattr(timing, clock) for timing in side]) for side in zip(*pairs, strict=True))
        low, high = np.quantile(ours / plain, (0.25, 0.75))
        lines.append(
            f"  {clock:9}  ours {np.median(ours):.4f} s  plain {np.median(plain):.4f} s  "
            f"ratio {np.median(ours) / np.median(plain):.3f}  (quartiles of the rounds {low:.3f} to {high:.3f})"
        )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line and runs the workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="W1, W2; default: both")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each program")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before them")
    parser.add_argument("--channels-last", action="store_true", help="the plain loop in channels_last")
    options = parser.parse_args()
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    with open_group(detect(os.environ), RuntimeSettings(device="cpu", threads=1)) as group:
        for name in options.workloads:
            compare(name, group, options.warm_up, options.rounds, memory_format)


if __name__ == "__main__":
    main()
