"""The ranks' store while ranks do nothing else: seconds until all have met, requests a second, rank 0's computing.

    python benchmarks/store.py                       # 2, 16 and 64 processes of this machine
    python benchmarks/store.py --ranks 256 --ranks-per-node 1 8 32 --seconds 20

Each rank is a process, forked after the imports, with a real connection to rank 0's store and a real watch. The ranks
share memory in groups, as those of a node do.
"""

import argparse
import json
import multiprocessing
import os
import resource
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from fedmef_dist.cluster.board import open_board
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.rendezvous import open_store
from fedmef_dist.cluster.watch import Watch

_REQUESTS = ("set", "get", "check", "add", "multi_get", "multi_set", "compare_set", "wait")


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: dist.Store) -> None:
        self._store, self.requests = store, 0

    def __getattr__(self, name):
        if name in _REQUESTS:
            self.requests += 1
        return getattr(self._store, name)


class Meeting:
    """Gathers through the store what the board needs to know of all ranks."""

    def __init__(self, environment: Environment, store: dist.Store) -> None:
        self.environment, self._store, self._times = environment, store, 0

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        self._times += 1
        keys = [f"gathered/{self._times}/{rank}" for rank in range(self.environment.world_size)]
        self._store.set(keys[self.environment.rank], json.dumps(tensor.tolist()))
        return torch.tensor([json.loads(value) for value in self._store.multi_get(keys)])


def rank_main(rank: int, ranks: int, local: int, port: int, seconds: float, start: float, results) -> None:
    torch.set_num_threads(1)
    os.environ["SLURMD_NODENAME"] = f"n{rank // local}"
    place = Environment("srun", rank, ranks, rank % local, local, "127.0.0.1", port)
    store = Counting(open_store(place, timedelta(seconds=120)))
    store.add("met", 1)
    while store.add("met", 0) < ranks:
        time.sleep(0.1)
    met = time.monotonic() - start
    watch = Watch(place, store)
    watch.share(*open_board(Meeting(place, store)))
    watch.start()
    time.sleep(1)
    store.requests, used = 0, processor_seconds()
    for number in range(int(5 * seconds)):  # a client a fifth of a second
        watch.place = f"round 1, client {number}"
        time.sleep(0.2)
    requests, used = store.requests, processor_seconds() - used
    results.put((rank, met, requests / seconds, used / seconds))
    store.add("done", 1)
    while rank == 0 and store.add("done", 0) < ranks:
        time.sleep(0.1)
    os._exit(0)


def processor_seconds() -> float:
    """Of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Prints a line for each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 16, 64])
    parser.add_argument("--ranks-per-node", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    sizes = [(ranks, local) for ranks in options.ranks for local in options.ranks_per_node if ranks % local == 0]
    for place, (ranks, local) in enumerate(sizes):
        results, start = context.SimpleQueue(), time.monotonic()
        arguments = (ranks, local, 14100 + place, options.seconds, start, results)
        processes = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        found = sorted(results.get() for _ in processes)
        for process in processes:
            process.join()
        met, requests, server = max(row[1] for row in found), sum(row[2] for row in found), found[0][3]
        print(
            f"{ranks} ranks on {ranks // local} nodes: met after {met:.2f} s, {requests:.0f} requests a second, "
            f"rank 0 computes {100 * server:.1f} % of a core",
            flush=True,
        )


if __name__ == "__main__":
    main()
