"""Seconds a FedAvg round takes, beside a plain PyTorch loop that trains the same clients on the same batches.

Start it with two ranks of one thread each, or as one process:

    torchrun --standalone --nproc-per-node 2 benchmarks/round.py
    OMP_NUM_THREADS=1 python benchmarks/round.py W2 --channels-last --passes

W1 is Fashion-MNIST with 100 clients, W2 has 1,000 clients of 60 samples. W3 is our FedMef with pruned activations on
ResNet-8, beside our FedAvg with batch normalisation there. All programs run in the same processes, one round of ours,
one of the other, and so on; a ratio below 1 means that ours is faster.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

Play = Callable[[int], object]
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
    "W3": {
        "data": {"dataset": "fashion_mnist", "augment": False, "partition": {"scheme": "iid"}},
        "method": {"name": "fedmef", "density": 0.1},
        "model": {"name": "resnet8"},
        "sap": {"prune_ratio": 0.5},
        "federation": {
            "clients": 100,
            "clients_per_round": 4,
            "rounds": 10**6,
            "local_epochs": 1,
            "batch_size": 32,
        },
    },
}
# A workload that runs beside another run of ours, of which these settings differ, and not beside the plain loop.
BESIDE = {"W3": {"method": {"name": "fedavg"}, "model": {"name": "resnet8", "norm": "batch"}, "sap": {}}}


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
        self.model = cnn(dataset.classes, channels, (size, size), settings.width, settings.hidden)
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
            if self.world_size > 1:
                dist.all_reduce(value)
            self.state[name] = value / samples
        return loss / samples

    def play_passes(self, number: int) -> None:
        """The forward and backward passes of a round and nothing else: what a loop of these kernels cannot leave out.

        The batches lie in a row, weights do not move, and nothing is summed.
        """
        federation, parameters = self.config.federation, list(self.model.parameters())
        cohort = draw_cohort(self.population, federation, self.config.seed, number)
        self.model.train()
        for samples in cohort.samples[self.rank :: self.world_size]:
            images, labels = (tensor[:samples].split(federation.batch_size) for tensor in (self.images, self.labels))
            for batch in federation.local_epochs * list(zip(images, labels, strict=True)):
                F.cross_entropy(self.model(batch[0]), batch[1]).backward()
                for parameter in parameters:
                    parameter.grad = None

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


def timed(play: Play, number: int, group: Group) -> Timing:
    """Plays a round on all ranks at once."""
    group.barrier()
    wall, processor = time.perf_counter(), time.process_time()
    play(number)
    seconds = torch.tensor([time.perf_counter() - wall, time.process_time() - processor], dtype=torch.float64)
    every = group.all_gather(seconds)
    return Timing(every[:, 0].max().item(), every[:, 1].sum().item())


def started(workload: dict[str, Any], name: str, group: Group) -> Simulation:
    """A run before its first round."""
    simulation = Simulation(parse_config(COMMON | workload, name), group)
    simulation.start()
    return simulation


def rounds_of(simulation: Simulation) -> Play:
    """Plays a run's rounds."""

    def play(number: int) -> None:
        simulation.round = number
        simulation.play_round()

    return play


def compare(name: str, group: Group, options: argparse.Namespace) -> None:
    """Plays all programs' rounds in turn and prints what they took."""
    simulation, plain = started(WORKLOADS[name], name, group), None
    start, programs = simulation.server.values, {"ours": rounds_of(simulation)}
    if name in BESIDE:
        programs["FedAvg"] = rounds_of(started(WORKLOADS[name] | BESIDE[name], name, group))
    else:
        plain = PlainLoop(simulation, torch.channels_last if options.channels_last else torch.contiguous_format)
        programs |= {"plain": plain.play_round} | ({"passes": plain.play_passes} if options.passes else {})
    timings = []
    for number in range(1, options.warm_up + options.rounds + 1):
        timings.append({program: timed(play, number, group) for program, play in programs.items()})
        if number == 1 and plain is not None:
            check_agreement(simulation, plain, start)
    if group.rank == 0:
        print(report(name, simulation, timings[options.warm_up :]), flush=True)


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


def report(name: str, simulation: Simulation, timings: list[dict[str, Timing]]) -> str:
    """A line for each clock and other program: medians of rounds, their ratio, quartiles of the rounds' own ratios."""
    lines = [f"{name}: {simulation.space.n_parameters:,} parameters, {len(timings)} rounds"]
    for clock in ("wall", "processor"):
        seconds = {program: np.array([getattr(one[program], clock) for one in timings]) for program in timings[0]}
        ours = seconds.pop("ours")
        for program, other in seconds.items():
            low, high = np.quantile(ours / other, (0.25, 0.75))
            lines.append(
                f"  {clock:9}  ours {np.median(ours):.4f} s  {program} {np.median(other):.4f} s  "
                f"ratio {np.median(ours) / np.median(other):.3f}  (quartiles of the rounds {low:.3f} to {high:.3f})"
            )
    return "\n".join(lines)


def main() -> None:
    """Reads the command line and runs the workloads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help="W1, W2, W3; default: all")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds of each program")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before them")
    parser.add_argument("--channels-last", action="store_true", help="the plain loop in channels_last")
    parser.add_argument("--passes", action="store_true", help="also the plain loop's passes alone")
    options = parser.parse_args()
    with open_group(detect(os.environ), RuntimeSettings(device="cpu", threads=1)) as group:
        for name in options.workloads:
            compare(name, group, options)


if __name__ == "__main__":
    main()
