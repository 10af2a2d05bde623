"""The ranks' store while ranks do nothing else: seconds until all have met, requests a second, rank 0's computing.

    python benchmarks/store.py                       # 2, 16 and 64 processes of this machine
    python benchmarks/store.py --ranks 256 --seconds 20

Each rank is a process, forked after the imports, with a real connection to rank 0's store and a real watch.
"""

import argparse
import multiprocessing
import os
import resource
import time
from datetime import timedelta

import torch.distributed as dist

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


def rank_main(rank: int, ranks: int, port: int, seconds: float, start: float, results) -> None:
    place = Environment("srun", rank, ranks, rank, ranks, "127.0.0.1", port)
    store = Counting(open_store(place, timedelta(seconds=120)))
    store.add("met", 1)
    while store.add("met", 0) < ranks:
        time.sleep(0.1)
    met = time.monotonic() - start
    store.requests, used = 0, processor_seconds()
    watch = Watch(place, store)
    watch.start()
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
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    for place, ranks in enumerate(options.ranks):
        results, start = context.SimpleQueue(), time.monotonic()
        arguments = (ranks, 14100 + place, options.seconds, start, results)
        processes = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        found = sorted(results.get() for _ in processes)
        for process in processes:
            process.join()
        met, requests, server = max(row[1] for row in found), sum(row[2] for row in found), found[0][3]
        print(
            f"{ranks} ranks: met after {met:.2f} s, {requests:.0f} requests a second, "
            f"rank 0 computes {100 * server:.1f} % of a core",
            flush=True,
        )


if __name__ == "__main__":
    main()
