"""Gloo over several nodes: all-reduces in two levels, and exact sums in fewer bytes, where that is faster.

On one level a ring passes over all ranks, with 2 (P - 1) latencies of the network between nodes. On two levels the
ranks of a node add up first, then each adds up its share with its peers of the other nodes, then the node shares the
result out. Integers come out the same.
"""

import logging
import statistics
import time
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fedmef_dist.cluster.collective_costs import Link, Network, choose_all_reduce
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.short_sum import all_reduce_short
from fedmef_dist.cluster.transport import TorchTransport, peers_lost

Sums = Literal["auto", "whole", "short"]

_LOG = logging.getLogger(__name__)
_LONG = 1 << 20  # bytes of a probe that shows the bandwidth
_TIMES = 5
_WHOLE = 8  # bytes of an integer
_SHORT = 5  # that most integers of a round's sum fit into
# What it takes to make a value shorter and longer again, and to add it up: processor time, benchmarks/sums.py.
_PACKING_SECONDS = 20e-9


class GlooLevel:
    """The ranks of one of gloo's process groups."""

    def __init__(self, group: "dist.ProcessGroup") -> None:
        self.size, self.rank, self._group = group.size(), group.rank(), group

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over these ranks, in place."""
        with peers_lost("all_reduce"):
            self._group.allreduce([tensor]).wait()

    def all_to_all(self, output: Tensor, tensor: Tensor) -> None:
        """Row r of ``tensor`` goes to rank r."""
        with peers_lost("all_to_all"):
            self._group.alltoall_base(output, tensor, [], []).wait()

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect ``tensor`` of rank r in ``output[r]``."""
        with peers_lost("all_gather"):
            self._group.allgather([list(output)], [tensor]).wait()


class LevelTransport(TorchTransport):
    """Collectives of ranks that fill nodes one after another, each with as many.

    Args:
        node: the ranks of this node; None where each node has one.
        peers: those of this rank's local number on all nodes.
        network: links as measured, the same on every rank.
        sums: ``short`` and ``whole`` leave no choice to the links.
    """

    def __init__(self, node: GlooLevel | None, peers: GlooLevel, network: Network, sums: Sums = "auto") -> None:
        self.node, self.peers, self.network, self._sums = node, peers, network, sums
        self._said: set[str] = set()

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks; of integers in the levels that take least time."""
        name = choose_all_reduce(tensor.nbytes, self.network, "gloo")
        if name != "two-level" or tensor.is_floating_point():  # whose sum depends on the order
            return super().all_reduce(tensor)
        self._say(name, f"an all-reduce of {tensor.nbytes} bytes goes in two levels, as others of its size")
        self.sum_in_levels(tensor, short=False)

    def is_short(self, count: int) -> bool:
        """Whether so many integers travel faster as short ones, by the links."""
        if self._sums != "auto":
            return self._sums == "short"
        nodes, link = self.peers.size, self.network.between
        saved = 2 * (nodes - 1) / nodes * count * (_WHOLE - _SHORT) / link.bandwidth
        return saved > count / self.network.local * _PACKING_SECONDS + 4 * nodes * link.latency

    def all_reduce_short(self, tensor: Tensor) -> None:
        """Sum of int64 over all ranks, with fewer bytes for what is small."""
        width = self.sum_in_levels(tensor, short=True)
        self._say(
            "short", f"a sum of {tensor.numel()} integers moves {width:.2f} bytes for each, as others of its size"
        )

    def sum_in_levels(self, tensor: Tensor, short: bool) -> float:
        """Sum over all ranks in place, in two levels; returns the bytes a value that travelled between nodes."""
        flat, local = tensor.view(-1), self.network.local
        share = -(-flat.numel() // local)
        buffer = flat if share * local == flat.numel() else flat.new_zeros(share * local)
        if buffer is not flat:
            buffer[: flat.numel()] = flat
        rows, width = buffer.view(local, share), float(_WHOLE)
        if self.node is not None:
            self.node.all_reduce(buffer)
        own = rows[0] if self.node is None else rows[self.node.rank].clone()
        if short:
            width = all_reduce_short(own, self.peers)
        else:
            self.peers.all_reduce(own)
        if self.node is not None:
            self.node.all_gather(rows, own)
        if buffer is not flat:
            flat.copy_(buffer[: flat.numel()])
        return width

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _LOG.info(text)


def open_levels(environment: Environment, timeout: float, sums: Sums) -> TorchTransport:
    """The transport of gloo's open process group: with levels where ranks fill several nodes alike.

    Every rank must call it.
    """
    flat, local = TorchTransport(), environment.local_world_size
    place = environment.rank % local
    found = torch.empty(environment.world_size, 2, dtype=torch.int64)
    flat.all_gather(found, torch.tensor([local, int(place == environment.local_rank)]))
    alike = bool((found[:, 0] == local).all()) and bool(found[:, 1].all()) and environment.world_size % local == 0
    if not alike or (environment.all_local and sums != "short"):
        return flat
    if environment.all_local:
        local, place = 1, 0  # as if each rank had a node of its own
    limit, first = timedelta(seconds=timeout), environment.rank - place

    def level(ranks: range) -> GlooLevel:
        return GlooLevel(dist.new_group([*ranks], timeout=limit, backend="gloo", use_local_synchronization=True))

    node = level(range(first, first + local)) if local > 1 else None
    peers = level(range(place, environment.world_size, local))
    between = measure_link(peers, flat)
    inside = between if node is None else measure_link(node, flat)
    _LOG.info("inside a node: %s; between nodes: %s", inside, between)
    return LevelTransport(node, peers, Network(environment.world_size, local, inside, between), sums)


def measure_link(level: GlooLevel, everybody: TorchTransport) -> Link:
    """A level's link from two sizes of ring all-reduce; the mean over all ranks, so that all have the same."""
    steps, seconds = 2 * (level.size - 1), []
    for size in (8, _LONG):
        tensor, found = torch.zeros(size // 8, dtype=torch.int64), []
        for _ in range(_TIMES):
            start = time.perf_counter()
            level.all_reduce(tensor)
            found.append(time.perf_counter() - start)
        seconds.append(statistics.median(found))
    # Integers, so that the sum is the same on every rank.
    nanoseconds = torch.tensor([round(1e9 * value) for value in seconds] + [1])
    everybody.all_reduce(nanoseconds)
    short, long = (1e-9 * int(value) / int(nanoseconds[2]) for value in nanoseconds[:2])
    return Link(short / steps, steps / level.size * _LONG / max(long - short, 1e-9))
