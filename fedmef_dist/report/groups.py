"""Runs that differ only in the seed, as one group, and numbers over its seeds."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedmef_dist.base.text import printable
from fedmef_dist.report.labels import labels
from fedmef_dist.report.runs import Run


@dataclass(frozen=True)
class Spread:
    """A mean and the sample standard deviation; that is None for a single value, and both are where there is none."""

    mean: float | None
    deviation: float | None


def spread(values: Iterable[float | None]) -> Spread:
    """Mean and sample standard deviation of ``values``; nothing where one of them is missing or there are none."""
    known = list(values)
    if not known or any(value is None for value in known):
        return Spread(None, None)
    numbers = np.array(known, dtype=np.float64)
    return Spread(float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one experiment that differ only in the seed; ``label`` is what tables and legends call it."""

    label: str
    runs: Sequence[Run]

    @property
    def method(self) -> str:
        """The name of the method that all of them ran."""
        return printable(str(self.runs[0].config["method"]["name"]))

    def spread(self, quantity: Callable[[Run], float | None]) -> Spread:
        """The spread over the seeds of what ``quantity`` finds in a run."""
        return spread(quantity(run) for run in self.runs)

    def mean(self, key: str) -> float | None:
        """The mean over the seeds of a value, as `Run.value` finds it; None where a run lacks it."""
        return self.spread(lambda run: run.value(key)).mean


def group_runs(runs: Sequence[Run]) -> list[RunGroup]:
    """The runs as groups of seeds, in the order in which each first appears; no two have the same label."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(json.dumps(run.experiment, sort_keys=True, default=str), []).append(run)
    seeds = list(members.values())
    return [RunGroup(label, group) for label, group in zip(labels(seeds), seeds, strict=True)]
