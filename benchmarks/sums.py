"""Summing a round over ranks: float32 as others do it, exact integers of 8 bytes, and the same with fewer on the wire.

    python benchmarks/sums.py                                     # 2 and 4 ranks of this machine, three sizes
    python benchmarks/sums.py --ranks 2 4 8 --values 100000 1000000 10000000 --moved 0.001 0.01

Milliseconds of an exchange on the slowest rank, median of the repetitions, and the bytes a value that travel each way.
`moved` is how far clients move weights (a standard deviation); it decides how many bytes suffice. float32, int64 and
short are the round's sum of packed states; union and index-value a collection's exchanges with 10 % of the positions.
"""

import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fedmef_dist.cluster.short_sum import all_reduce_short
from fedmef_dist.cluster.two_level import GlooLevel
from fedmef_dist.sums.exact_sum import FixedPoint

CLIENTS, SAMPLES = 10, 100  # of each rank


def integers(rank: int, ranks: int, values: int, moved: float) -> torch.Tensor:
    """What a rank's clients have changed, in fixed point."""
    generator = torch.Generator().manual_seed(rank)
    changes = moved * torch.randn(values, generator=generator) / CLIENTS**0.5
    return FixedPoint.for_weight(ranks * CLIENTS * SAMPLES).encode(changes, CLIENTS * SAMPLES)


def measure(work, repeats: int) -> float:
    """Median seconds of a call on the slowest rank."""
    found = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    slowest = torch.tensor([statistics.median(found[1:])], dtype=torch.float64)
    dist.all_reduce(slowest, dist.ReduceOp.MAX)
    return float(slowest)


def rank_main(rank: int, ranks: int, port: int, options: argparse.Namespace) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": options.interface, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    level = GlooLevel(dist.group.WORLD)
    for values in options.values:
        for moved in options.moved:
            line = compare(integers(rank, ranks, values, moved), level, options.repeats)
            if rank == 0:
                print(f"{ranks} ranks, {values:,} values, moved {moved:g}: {line}", flush=True)
    dist.destroy_process_group()


def compare(number: torch.Tensor, level: GlooLevel, repeats: int) -> str:
    """Each exchange's milliseconds, and the bytes a value of the short one."""
    some, widths = number[: number.numel() // 10].clone(), []
    work = {
        "float32": lambda: dist.all_reduce(number.float()),
        "int64": lambda: dist.all_reduce(number.clone()),
        "short": lambda: widths.append(all_reduce_short(number.clone(), level)),
        "union, int64": lambda: dist.all_reduce(some.clone()),
        "union, short": lambda: all_reduce_short(some.clone(), level),
        "index-value": lambda: gather(some, level),
    }
    times = [f"{name} {1000 * measure(exchange, repeats):.2f}" for name, exchange in work.items()]
    return f"{'  '.join(times)} ms; {widths[0]:.2f} bytes"


def gather(numbers: torch.Tensor, level: GlooLevel) -> None:
    """Positions and numbers of every rank to every rank."""
    pairs = torch.stack([torch.arange(numbers.numel()), numbers])
    level.all_gather(torch.empty(level.size, *pairs.shape, dtype=torch.int64), pairs)


def main() -> None:
    """Starts the ranks as processes of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--values", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--moved", type=float, nargs="*", default=[0.001, 0.01])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--interface", default="lo")
    options = parser.parse_args()
    for place, ranks in enumerate(options.ranks):
        mp.spawn(rank_main, (ranks, 29400 + place, options), ranks)


if __name__ == "__main__":
    main()
