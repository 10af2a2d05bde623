"""Which rank trains which client: longest job first, with costs learned from earlier rounds."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import TypeAdapter


def assign(costs: np.ndarray, world_size: int) -> list[list[int]]:
    """Cohort slots for each rank; each goes, longest first, to the rank with least work so far (Graham's LPT rule).

    Args:
        costs: float (cohort,), expected seconds in any unit.
        world_size: number of ranks.
    """
    work = [(0.0, rank) for rank in range(world_size)]
    slots: list[list[int]] = [[] for _ in range(world_size)]
    for slot in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(work)
        slots[rank].append(slot)
        heapq.heappush(work, (load + float(costs[slot]), rank))
    return slots


@dataclass
class TrainingTimes:
    """Seconds a client takes as a line over its samples, fitted to all rounds seen.

    Every rank feeds it the same measurements, so every rank makes the same placement. The placement changes how long a
    round takes, never its result.
    """

    sums: np.ndarray = field(default_factory=lambda: np.zeros(5))

    def state(self) -> dict[str, list[float]]:
        """The sums that the line is fitted from."""
        return {"sums": self.sums.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state` gave. Raises ValueError where that is impossible."""
        sums = np.array(TypeAdapter(list[float]).validate_python(state["sums"], strict=True), dtype=np.float64)
        if sums.shape != self.sums.shape:
            raise ValueError(f"{sums.size} sums of training times instead of {self.sums.size}")
        self.sums = sums

    def observe(self, samples: np.ndarray, seconds: np.ndarray) -> None:
        """Adds one round: samples and seconds of its clients, both (cohort,)."""
        x, y = samples.astype(np.float64), seconds
        self.sums += [len(x), x.sum(), y.sum(), (x * x).sum(), (x * y).sum()]

    def predict(self, samples: np.ndarray) -> np.ndarray:
        """Expected seconds for clients with so many samples, float64 (cohort,); the samples themselves at first."""
        n, sum_x, sum_y, sum_xx, sum_xy = self.sums
        spread = n * sum_xx - sum_x * sum_x
        if spread <= 0:
            return samples.astype(np.float64)
        slope = max((n * sum_xy - sum_x * sum_y) / spread, 0.0)
        base = max((sum_y - slope * sum_x) / n, 0.0)
        return base + slope * samples
