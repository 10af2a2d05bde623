"""Seconds of a round as a sum of parts, each with coefficients of its own."""

from dataclasses import dataclass, replace
from math import erf, sqrt

import numpy as np

from fedmef_dist.cluster.collective_costs import Backend, Link, Network, all_reduce, broadcast, choose_all_reduce, hops
from fedmef_dist.scaling.cluster_file import Cluster
from fedmef_dist.sums.placement import assign

# Parts of a round, in the order in which a report shows them.
PARTS = (
    "training", "slowest client", "placement", "jitter", "latency", "bandwidth", "server", "evaluation", "drawing",
    "rest",
)  # fmt: skip
# Beyond so many clients the placement is taken as perfect: a rank has too many for it to matter.
_MOST_PLACED = 1_000_000
SLOT_BYTES = 8  # of each client and each rank in the buffer of the round's sum
SMALL_BYTES = 64.0  # bytes of an evaluation's sums
_EULER = 0.5772156649015329

NO_COST = Link(0.0, float("inf"))


@dataclass(frozen=True)
class Work:
    """What a round hands to collectives and how often it does more than train.

    Attributes:
        reduce_bytes: bytes that a rank gives to the round's sum, without those of clients and ranks.
        evaluated: share of the rounds that evaluate.
        adjusted: share of the rounds in which rank 0 broadcasts a new mask.
    """

    reduce_bytes: float
    evaluated: float
    adjusted: float

    def size(self, cohort: int, ranks: int) -> float:
        """Bytes of the round's sum."""
        return self.reduce_bytes + SLOT_BYTES * (cohort + ranks)


@dataclass(frozen=True)
class CostModel:
    """Coefficients of a round's parts.

    Attributes:
        client: seconds that a client takes whatever its samples, on a node with one rank.
        sample: seconds of training a sample costs there.
        neighbour: seconds a sample costs more for each further rank on the node.
        jitter: relative deviation of a client's seconds from these.
        inside: the link between two ranks of a node.
        between: that between two nodes; None where nobody measured one.
        waking: seconds a message of a round's sums takes longer than in a row of collectives: ranks come to it from
            training, one after another, and wait for a core.
        backend: whose collectives were measured.
        server: seconds of the server's step, of all rounds.
        evaluate: seconds that the test set takes on one rank, spread over all rounds.
        draw: seconds of drawing and placing a client, on every rank.
        rest: seconds a round of everything else.
        start: seconds of a run outside of its rounds.
        crowding: how much slower server, evaluation and rest get for each further rank on the node.
    """

    client: float = 0.0
    sample: float = 0.0
    neighbour: float = 0.0
    jitter: float = 0.0
    inside: Link = NO_COST
    between: Link | None = None
    waking: float = 0.0
    backend: Backend = "gloo"
    server: float = 0.0
    evaluate: float = 0.0
    draw: float = 0.0
    rest: float = 0.0
    start: float = 0.0
    crowding: float = 0.0

    def on(self, cluster: Cluster) -> "CostModel":
        """The same run on the ranks of a described cluster, where none slows down another."""
        sample = cluster.seconds_per_sample
        return replace(
            self,
            client=self.client / cluster.speed,
            sample=self.sample / cluster.speed if sample is None else sample,
            neighbour=0.0,
            crowding=0.0,
            waking=0.0,
            jitter=self.jitter if cluster.jitter is None else cluster.jitter,
            inside=cluster.inside.link,
            between=cluster.between.link,
            backend=cluster.backend,
            server=self.server / cluster.speed,
            evaluate=self.evaluate / cluster.speed,
            draw=self.draw / cluster.speed,
            rest=self.rest / cluster.speed,
        )

    def network(self, ranks: int, ranks_per_node: int) -> Network:
        """That of so many ranks; a node more is as far away as a rank where nobody measured it."""
        return Network(ranks, ranks_per_node, self.inside, self.between or self.inside)

    def woken(self, size: float, network: Network) -> float:
        """Seconds that so many bytes' sum in a round takes longer than in a row of collectives."""
        return self.waking * hops(size, network, self.backend)

    def costs(self, samples: np.ndarray, local_ranks: int) -> np.ndarray:
        """Seconds of each client, (cohort,)."""
        return self.client + samples * (self.sample + self.neighbour * (local_ranks - 1))

    def parts(self, samples: np.ndarray, network: Network, work: Work) -> dict[str, float]:
        """Seconds of each of ``PARTS`` in a round whose cohort holds so many samples, (cohort,).

        The cohort is placed as a run places it. ``training`` is what ranks with equal work would take, ``slowest
        client`` what the largest client takes beyond that, ``placement`` what the busiest rank takes beyond both.
        """
        ranks, cohort = network.ranks, len(samples)
        costs = self.costs(samples, network.local)
        mean, largest = float(costs.sum()) / ranks, float(costs.max(initial=0.0))
        if cohort > _MOST_PLACED:
            busy, waiting = max(mean, largest), 0.0
        else:
            placement = assign(costs, ranks)
            loads = placement.loads(costs)
            busy = float(loads.max())
            waiting = latest(loads, self.jitter * np.sqrt(placement.loads(costs**2))) - busy
        size = work.size(cohort, ranks)
        reduce, waking = all_reduce(size, network, self.backend), self.woken(size, network)
        small = all_reduce(SMALL_BYTES, network, self.backend)
        mask = broadcast(work.reduce_bytes / 64, network)  # a bit a value
        crowd = 1 + self.crowding * (network.local - 1)
        return {
            "training": mean,
            "slowest client": max(largest - mean, 0.0),
            "placement": max(busy - max(mean, largest), 0.0),  # but for rounding it is never below
            "jitter": waiting,
            "latency": waking
            + reduce.latency
            + work.evaluated * (self.woken(SMALL_BYTES, network) + small.latency)
            + work.adjusted * mask.latency,
            "bandwidth": reduce.transfer + work.evaluated * small.transfer + work.adjusted * mask.transfer,
            "server": crowd * self.server,
            "evaluation": crowd * self.evaluate / ranks,
            "drawing": self.draw * cohort,
            "rest": crowd * self.rest,
        }

    def all_reduce_name(self, cohort: int, network: Network, work: Work) -> str:
        """The algorithm that the round's sum takes."""
        return choose_all_reduce(work.size(cohort, network.ranks), network, self.backend)


def latest(means: np.ndarray, deviations: np.ndarray) -> float:
    """When the last of several normally distributed times is over, on average.

    The distribution of the largest is close to Gumbel's, whose mean lies where the largest of all is below with
    probability exp(-exp(-gamma)), gamma being Euler's constant.
    """
    wanted = float(np.exp(-np.exp(-_EULER)))
    if not deviations.any() or len(means) == 1:
        return float(means.max())
    low, high = float(means.max() - deviations.max()), float((means + 8 * deviations).max())
    cdf = np.vectorize(lambda z: 0.5 * (1 + erf(z / sqrt(2))))
    near = means + 8 * deviations > means.max() - deviations.max()  # the others are over long before
    means, deviations = means[near], np.maximum(deviations[near], 1e-300)
    for _ in range(40):
        middle = (low + high) / 2
        below = float(np.prod(cdf((middle - means) / deviations)))
        low, high = (middle, high) if below < wanted else (low, middle)
    return high
