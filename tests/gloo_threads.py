"""Real process groups of gloo between threads of this process."""

import threading
from datetime import timedelta

import torch.distributed as dist

from fedmef_dist.cluster.collective_costs import Link, Network
from fedmef_dist.cluster.two_level import GlooLevel, LevelTransport

LINK = Link(1e-5, 1e9)


def on_levels(ranks, local, work):
    """What ``work(rank, transport)`` gives on so many ranks, of which ``local`` share a node."""
    store, results = dist.HashStore(), [None] * ranks

    def group(name, rank, size):
        return GlooLevel(dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, size, timedelta(seconds=60)))

    def body(rank):
        try:
            node, place = divmod(rank, local)
            here = group(f"node {node}", place, local) if local > 1 else None
            peers = group(f"peers {place}", node, ranks // local)
            results[rank] = work(rank, LevelTransport(here, peers, Network(ranks, local, LINK, LINK)))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
