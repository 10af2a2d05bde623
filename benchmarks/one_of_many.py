"""One rank of thousands, for real: its start-up, memory and rounds, alone under torch's fake process group.

    python benchmarks/one_of_many.py                                       # rank 17 of 4,096, 40,960 clients a round
    python benchmarks/one_of_many.py --ranks 64 --cohort 640 --config configs/quickstart.yaml

Collectives return at once and move nothing, so what is measured is everything of a rank but waiting: start-up, first
mask, drawing and placing the cohort, training its own clients, its part of the sum, the server's step, its share of the
test set. The model's values mean nothing afterwards, since nobody else has trained.
"""

import argparse
import logging
import resource
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.transport import TorchTransport
from fedmef_dist.config import load_config
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sums.round_sum import RoundSum

PHASES = ("train", "reduce", "adjust", "eval", "round")


def main() -> None:
    """Prints what was measured, one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--rank", type=int, default=17)
    parser.add_argument("--local-ranks", type=int, default=8)
    parser.add_argument("--cohort", type=int, default=40_960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", type=Path, default=Path("configs/million_clients.yaml"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    RoundSum._check_digest = lambda *arguments: None  # the others hold no masks at all

    start = time.perf_counter()
    config = load_config(options.config, [f"federation.clients_per_round={options.cohort}", *options.overrides])
    dist.init_process_group("fake", store=FakeStore(), rank=options.rank, world_size=options.ranks)
    local = options.local_ranks
    place = Environment("fake", options.rank, options.ranks, options.rank % local, local, None, None)
    group = Group(place, torch.device("cpu"), "gloo", TorchTransport())
    simulation = Simulation(config, group)
    # The seconds of the others are not there to learn from.
    simulation.local.times.observe = lambda *arguments: None
    built = time.perf_counter()
    simulation.start()
    print(f"start-up            {built - start:.2f} s, first mask {time.perf_counter() - built:.2f} s")
    for number in range(1, options.rounds + 1):
        simulation.round = number
        metrics = simulation.play_round()
        assert metrics is not None
        phases = "  ".join(f"{name} {1000 * metrics.get(f'time/{name}', 0.0):.1f}" for name in PHASES)
        print(f"round {number} (ms)        {phases}")
    placed = simulation.local._placement
    assert placed is not None
    counts = placed.counts()
    print(f"clients             {counts[options.rank]} of this rank, {counts.min()} to {counts.max()} of the others")
    print(f"bytes to collectives {metrics['cluster/reduce_bytes']:,} a round")
    print(f"peak memory         {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
