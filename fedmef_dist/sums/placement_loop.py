"""Longest job first as one compiled loop, for cohorts of tens of thousands on thousands of ranks."""

from functools import cache

import numpy as np

from fedmef_dist.base.compiled import compiled, fill_cache


def place(costs: np.ndarray, order: np.ndarray, slowness: np.ndarray) -> np.ndarray:
    """The rank of each slot, int64 (cohort,), as :func:`fedmef_dist.sums.placement.assign` defines it.

    Args:
        costs: float64 (cohort,).
        order: int64 (cohort,), the slots in the order in which they are placed.
        slowness: float64 (ranks,), how many times its cost a client takes on each rank.
    """
    _prepare()
    speeds, kinds = np.unique(slowness, return_inverse=True)
    members = np.argsort(kinds, kind="stable")
    ends = np.cumsum(np.bincount(kinds, minlength=len(speeds)))
    ranks = np.empty(len(costs), np.int64)
    _place(costs, order, speeds, members, ends, ranks)
    return ranks


@cache
def _prepare() -> None:
    one, zero = np.ones(1), np.zeros(1, np.int64)
    fill_cache(_place, "", lambda: _place(one, zero, one, zero, zero + 1, zero.copy()))


@compiled
def _place(
    costs: np.ndarray,
    order: np.ndarray,
    speeds: np.ndarray,
    members: np.ndarray,
    ends: np.ndarray,
    ranks: np.ndarray,
) -> None:
    """One heap of (load, rank) for each speed, behind one another in ``heap``: the ranks in ``members``."""
    heap, loads = members.copy(), np.zeros(members.size)
    for slot in order:
        best, least, start = -1, 0.0, 0
        for kind in range(speeds.size):
            rank = heap[start]
            finish = loads[rank] + speeds[kind] * costs[slot]
            if best < 0 or finish < least or (finish == least and rank < heap[best]):
                best, least = start, finish
            start = ends[kind]
        rank = heap[best]
        ranks[slot], loads[rank] = rank, least
        size = 0
        for kind in range(speeds.size):
            if ends[kind] > best:
                size = ends[kind] - best
                break
        # The rank sinks to its place among those of its speed.
        parent = 0
        while True:
            child = 2 * parent + 1
            if child >= size:
                break
            if child + 1 < size:
                left, right = heap[best + child], heap[best + child + 1]
                if loads[right] < loads[left] or (loads[right] == loads[left] and right < left):
                    child += 1
            other = heap[best + child]
            if loads[other] > least or (loads[other] == least and other > rank):
                break
            heap[best + parent] = other
            parent = child
        heap[best + parent] = rank
