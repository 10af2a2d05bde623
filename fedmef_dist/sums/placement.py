"""Which rank trains which client: longest job first, with costs and ranks' speeds learned from earlier rounds."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np
from pydantic import TypeAdapter

# From so many clients on the compiled loop is worth its start.
_MANY = 4096
# Speeds are told apart in steps of this factor: what clocks and neighbours do from round to round is less.
_STEP = 1.05
_FORGET = 0.5  # what a round's measurement of a rank's speed leaves of those before


@dataclass(frozen=True)
class Placement:
    """Who trains whom in a round.

    Attributes:
        world_size: number of ranks.
        ranks: int64 (cohort,), the rank of each slot.
        order: int64 (cohort,), the slots, longest first: the order in which a rank trains its own.
    """

    world_size: int
    ranks: np.ndarray
    order: np.ndarray

    def slots(self, rank: int) -> list[int]:
        """The slots of a rank, in the order in which it trains them."""
        return self.order[self.ranks[self.order] == rank].tolist()

    def loads(self, costs: np.ndarray) -> np.ndarray:
        """The sum of these costs, (cohort,), over each rank's slots, float64 (ranks,)."""
        return np.bincount(self.ranks, costs, minlength=self.world_size)

    def counts(self) -> np.ndarray:
        """Slots of each rank, int64 (ranks,)."""
        return np.bincount(self.ranks, minlength=self.world_size)


def assign(costs: np.ndarray, world_size: int, slowness: np.ndarray | None = None) -> Placement:
    """Each slot goes, longest first, to the rank that would finish it first (Graham's LPT rule).

    On equal ranks that is the one with least work so far; of several the lowest.

    Args:
        costs: float (cohort,), expected seconds on a rank of speed 1, in any unit.
        world_size: number of ranks.
        slowness: float64 (ranks,), how many times its cost a client takes on each; few different ones. None: 1.
    """
    costs = np.asarray(costs, np.float64)
    order = np.argsort(-costs, kind="stable")
    slow = np.ones(world_size) if slowness is None else slowness
    if len(costs) >= _MANY:
        from fedmef_dist.sums.placement_loop import place

        return Placement(world_size, place(costs, order, slow), order)
    return Placement(world_size, _place(costs, order, slow), order)


def _place(costs: np.ndarray, order: np.ndarray, slowness: np.ndarray) -> np.ndarray:
    """What :func:`fedmef_dist.sums.placement_loop.place` does, for few clients."""
    heaps: dict[float, list[tuple[float, int]]] = {}
    for rank, slow in enumerate(slowness.tolist()):
        heaps.setdefault(slow, []).append((0.0, rank))
    ranks = np.empty(len(costs), np.int64)
    for slot, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        (finish, rank), slow = min(((heap[0][0] + slow * cost, heap[0][1]), slow) for slow, heap in heaps.items())
        heapq.heapreplace(heaps[slow], (finish, rank))
        ranks[slot] = rank
    return ranks


@dataclass(frozen=True)
class Imbalance:
    """How unevenly a round's training was shared out.

    Attributes:
        slowest: seconds of the busiest rank over the mean.
        bound: what no placement can be below: the largest client's seconds over the mean, 1 at least.
    """

    slowest: float
    bound: float

    @classmethod
    def of(cls, rank_seconds: np.ndarray, client_seconds: np.ndarray) -> "Imbalance":
        """From the seconds of each rank and of each client."""
        mean = max(float(rank_seconds.mean()), 1e-9)
        largest = float(client_seconds.max(initial=0.0))
        return cls(float(rank_seconds.max()) / mean, max(largest / mean, 1.0))


@dataclass
class TrainingTimes:
    """Seconds a client takes as a line over its samples, fitted to all rounds seen, and how slow each rank is.

    Every rank feeds it the same measurements, so every rank makes the same placement. The placement changes how long a
    round takes, never its result.

    Attributes:
        sums: float64 (5,), from which the line is fitted.
        slowness: float64 (ranks,), seconds of each rank's clients over those of the line; None before the first round.
    """

    sums: np.ndarray = field(default_factory=lambda: np.zeros(5))
    slowness: np.ndarray | None = None

    def state(self) -> dict[str, list[float]]:
        """The sums that the line is fitted from; the ranks of another start have other speeds."""
        return {"sums": self.sums.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave. Raises ValueError where that is impossible."""
        sums = np.array(TypeAdapter(list[float]).validate_python(state["sums"], strict=True), dtype=np.float64)
        if sums.shape != self.sums.shape:
            raise ValueError(f"{sums.size} sums of training times instead of {self.sums.size}")
        self.sums = sums

    def observe(self, samples: np.ndarray, seconds: np.ndarray, placement: Placement | None = None) -> None:
        """Adds one round: samples and seconds of its clients, both (cohort,), and who trained them, if that may vary.

        A client's seconds enter the line as those of a rank of speed 1.
        """
        x, y = samples.astype(np.float64), np.asarray(seconds, np.float64)
        if placement is not None:
            self.slowness = self._compare_ranks(x, y, placement)
            y = y / self.slowness[placement.ranks]
        self.sums += [len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum()]

    def _compare_ranks(self, samples: np.ndarray, seconds: np.ndarray, placement: Placement) -> np.ndarray:
        expected = placement.loads(self.predict(samples) if self.sums[0] else samples * _rate(samples, seconds))
        measured = placement.loads(seconds)
        known = np.ones(placement.world_size) if self.slowness is None else self.slowness
        share = np.divide(measured, expected, out=known.copy(), where=(expected > 0) & (measured > 0))
        first = self.slowness is None
        slowness = share if first else _FORGET * known + (1 - _FORGET) * share
        return np.asarray(slowness / np.median(slowness))

    def predict(self, samples: np.ndarray) -> np.ndarray:
        """Expected seconds for clients with so many samples, float64 (cohort,); the samples themselves at first.

        Clients of one size give no line: seconds are then in proportion to samples.
        """
        n, sum_x, sum_y, sum_xx, sum_xy = self.sums
        spread = n * sum_xx - sum_x * sum_x
        if spread <= 0:
            return samples * (sum_y / sum_x if sum_y > 0 else 1.0)
        slope = max((n * sum_xy - sum_x * sum_y) / spread, 0.0)
        base = max((sum_y - slope * sum_x) / n, 0.0)
        return base + slope * samples

    def place(self, samples: np.ndarray, world_size: int) -> Placement:
        """Places clients with so many samples, (cohort,), by what was learned."""
        steps = None if self.slowness is None else _STEP ** np.round(np.log(self.slowness) / log(_STEP))
        return assign(self.predict(samples), world_size, steps)


def _rate(samples: np.ndarray, seconds: np.ndarray) -> float:
    return float(seconds.sum() / max(samples.sum(), 1))
