"""Seconds of collectives as formulas, by algorithm, over ranks that fill nodes one after another.

A message of n bytes over a link takes ``latency + n / bandwidth`` (Hockney's model). ``inside`` is the link of a rank
to another one of its node, ``between`` that of a node to another node, which all ranks of the node share. The
algorithms and their costs: Thakur, Rabenseifner and Gropp (IJHPCA 2005); NCCL's tree: Sanders, Speck and Träff (2009).

Every cost comes as :class:`Seconds`, the part that does not depend on the bytes apart from the part that grows with
them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Literal, NamedTuple

Backend = Literal["gloo", "mpi", "nccl"]
# MPICH's and Open MPI's border between the two algorithms for all-reduce.
_MPI_SHORT = 2048


class Seconds(NamedTuple):
    """``latency``: seconds whatever the size; ``transfer``: seconds of moving the bytes."""

    latency: float
    transfer: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.latency + self.transfer


@dataclass(frozen=True)
class Link:
    """Seconds before the first byte arrives, and bytes a second behind it."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Network:
    """``ranks`` on nodes of ``ranks_per_node``; the last node may hold fewer."""

    ranks: int
    ranks_per_node: int
    inside: Link
    between: Link

    @property
    def local(self) -> int:
        """Ranks of a full node."""
        return min(self.ranks, self.ranks_per_node)

    @property
    def nodes(self) -> int:
        """Nodes that hold ranks."""
        return ceil(self.ranks / self.local)

    @property
    def slowest(self) -> Link:
        """The link that a ring over all ranks waits for: one rank a node sends to the next node."""
        if self.nodes == 1:
            return self.inside
        latency = max(self.inside.latency, self.between.latency)
        return Link(latency, min(self.inside.bandwidth, self.between.bandwidth))


def ring(size: float, network: Network) -> Seconds:
    """All-reduce over a ring of all ranks, as gloo does it: 2 (P - 1) steps with an n / P share each."""
    return _ring(size, network.ranks, network.slowest)


def _ring(size: float, ranks: int, link: Link) -> Seconds:
    steps = 2 * (ranks - 1)
    return Seconds(steps * link.latency, steps / ranks * size / link.bandwidth)


def recursive_doubling(size: float, network: Network) -> Seconds:
    """All-reduce in log2 P exchanges of everything; those between nodes share each node's link among its ranks."""
    inside, between = ceil(log2(network.local)), ceil(log2(network.nodes))
    return Seconds(
        inside * network.inside.latency + between * network.between.latency,
        size * (inside / network.inside.bandwidth + between * network.local / network.between.bandwidth),
    )


def halving_and_doubling(size: float, network: Network) -> Seconds:
    """Rabenseifner's all-reduce: halves are exchanged and added, near ranks first, and gathered the same way back."""
    local, nodes = network.local, network.nodes
    steps_inside, steps_between = 2 * ceil(log2(local)), 2 * ceil(log2(nodes))
    near = 2 * (local - 1) / local * size / network.inside.bandwidth
    # Each of a node's ranks sends an n / local share, all over one link.
    far = 2 * (nodes - 1) / nodes * size / network.between.bandwidth
    return Seconds(steps_inside * network.inside.latency + steps_between * network.between.latency, near + far)


def two_level(size: float, network: Network) -> Seconds:
    """All-reduce inside each node, then of a share by each rank with its peers of other nodes, then gathered inside.

    What :mod:`fedmef_dist.cluster.two_level` does, with gloo's ring on each level.
    """
    local, nodes = network.local, network.nodes
    near = _ring(size, local, network.inside)
    # The node's ranks share its link, and each has a share of the bytes.
    far = _ring(size, nodes, network.between)
    gather = all_gather(size / local, Network(local, local, network.inside, network.inside))
    parts = (near, far, gather)
    return Seconds(sum(part.latency for part in parts), sum(part.transfer for part in parts))


def nccl_tree(size: float, network: Network) -> Seconds:
    """NCCL's pair of binary trees between nodes over a chain inside each: twice the depth, twice the bytes."""
    inside, between = 2 * (network.local - 1), 2 * ceil(log2(network.nodes))
    latency = inside * network.inside.latency + between * network.between.latency
    return Seconds(latency, 2 * size / network.slowest.bandwidth if network.ranks > 1 else 0.0)


ALL_REDUCE: dict[str, Callable[[float, Network], Seconds]] = {
    "ring": ring,
    "recursive doubling": recursive_doubling,
    "halving and doubling": halving_and_doubling,
    "two-level": two_level,
    "tree": nccl_tree,
}


def choose_all_reduce(size: float, network: Network, backend: Backend) -> str:
    """The algorithm of ``ALL_REDUCE`` that a backend takes for so many bytes."""
    if backend == "mpi":
        return "recursive doubling" if size <= _MPI_SHORT else "halving and doubling"
    candidates = ["ring", "tree" if backend == "nccl" else "two-level"]
    if network.nodes == 1 or network.local == 1:
        candidates = candidates[:1]
    return min(candidates, key=lambda name: ALL_REDUCE[name](size, network).total)


def all_reduce(size: float, network: Network, backend: Backend) -> Seconds:
    """All-reduce of so many bytes a rank, as the backend does it; nothing for one rank."""
    if network.ranks == 1:
        return Seconds(0.0, 0.0)
    return ALL_REDUCE[choose_all_reduce(size, network, backend)](size, network)


def hops(size: float, network: Network, backend: Backend) -> float:
    """How many messages of that all-reduce follow one another; none for one rank."""
    if network.ranks == 1:
        return 0.0
    each = Link(1.0, float("inf"))
    name = choose_all_reduce(size, network, backend)
    return ALL_REDUCE[name](size, replace(network, inside=each, between=each)).latency


def broadcast(size: float, network: Network) -> Seconds:
    """From one rank to all, over a binomial tree."""
    inside, between = ceil(log2(network.local)), ceil(log2(network.nodes))
    return Seconds(
        inside * network.inside.latency + between * network.between.latency,
        size * (inside / network.inside.bandwidth + between / network.between.bandwidth),
    )


def all_gather(size: float, network: Network) -> Seconds:
    """So many bytes of each rank to every rank, over a ring."""
    steps, link = network.ranks - 1, network.slowest
    return Seconds(steps * link.latency, steps * size / link.bandwidth)
