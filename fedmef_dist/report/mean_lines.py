"""Lines through the rounds of a group of runs: means over its seeds, with their spread."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.runs import Run

Quantity = Callable[[Mapping[str, Any]], float | None]


@dataclass(frozen=True)
class Line:
    """Float64 arrays of one length, a value a round; ``deviation`` is None for a single seed."""

    x: np.ndarray
    y: np.ndarray
    deviation: np.ndarray | None


def mean_line(group: RunGroup, x: Quantity, y: Quantity) -> Line | None:
    """The group's means over the seeds, at the rounds in which every seed has both; None where there are none.

    ``x`` and ``y`` look at a round's metrics; ``deviation`` is the sample standard deviation of ``y``.
    """
    seeds = [_points(run, x, y) for run in group.runs]
    rounds = sorted(set.intersection(*(set(points) for points in seeds)))
    if not rounds:
        return None
    values = np.array([[points[number] for number in rounds] for points in seeds], dtype=np.float64)
    deviation = values[:, :, 1].std(axis=0, ddof=1) if len(seeds) > 1 else None
    return Line(values[:, :, 0].mean(axis=0), values[:, :, 1].mean(axis=0), deviation)


def logged(key: str, factor: float = 1.0) -> Quantity:
    """A metric times a factor."""
    return lambda line: None if line.get(key) is None else factor * float(line[key])


def _points(run: Run, x: Quantity, y: Quantity) -> dict[int, tuple[float, float]]:
    """Round -> (x, y), for the rounds that have both."""
    found = {}
    for metrics in run.metrics:
        place, value = x(metrics), y(metrics)
        if place is not None and value is not None:
            found[metrics["round"]] = (place, value)
    return found
