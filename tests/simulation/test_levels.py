"""Whole runs on ranks that are threads, whose sums go over real gloo in two levels and as short integers."""

import threading

import pytest
import torch
from gloo_threads import on_levels
from tiny import Run, alone, tiny

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.thread_ranks import ThreadRanks
from fedmef_dist.cluster.two_level import LevelTransport
from fedmef_dist.simulation.loop import Simulation

# A model draws its first weights from torch's one generator.
BUILDING = threading.Lock()


class Levels(LevelTransport):
    """What does not go in levels is exchanged between threads."""

    def __init__(self, flat, levels, sums):
        super().__init__(levels.node, levels.peers, levels.network, sums)
        self.flat = flat

    def all_reduce(self, tensor):
        if tensor.is_floating_point():
            self.flat.all_reduce(tensor)
        else:
            self.sum_in_levels(tensor, short=False)

    def broadcast(self, tensor, source):
        self.flat.broadcast(tensor, source)

    def all_gather(self, output, tensor):
        self.flat.all_gather(output, tensor)

    def barrier(self):
        self.flat.barrier()


METHODS = [
    {"name": "fedmef", "density": 0.5, "adjust_every": 2, "adjust_until": 6},
    {"name": "feddst", "density": 0.5, "adjust_every": 2, "adjust_until": 6},  # masks differ: unions and votes
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["name"])
def test_the_digest_is_the_same_in_levels_and_with_short_sums(method):
    config = tiny(method=method, federation={"rounds": 3})
    torch.set_num_threads(1)

    def digest(group):
        with BUILDING:
            simulation = Run(config, group)
        simulation.start()
        Simulation.run(simulation, lambda metrics: None, lambda: False)
        return simulation.server.digest()

    wanted = digest(alone())
    for ranks, local, sums in ((2, 1, "short"), (4, 2, "whole"), (4, 2, "short")):
        threads = ThreadRanks(ranks)
        flat = [group._transport for group in threads.groups]

        def work(rank, levels, flat=flat, ranks=ranks, local=local, sums=sums):
            place = Environment("threads", rank, ranks, rank % local, local, None, None)
            group = Group(place, torch.device("cpu"), "gloo", Levels(flat[rank], levels, sums))
            return digest(group)

        assert set(on_levels(ranks, local, work)) == {wanted}
