"""What a finished run of a study says: where its time went, taken from the ranks' traces."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.scaling.points import WARM_UP, Point
from fedmef_dist.scaling.runs import PROCESS_FILE
from fedmef_dist.tracking.timeline import PHASES, read_timelines

_SECONDS = 1e-6


@dataclass(frozen=True)
class Measurement:
    """One run of a point, its warm-up left out.

    Attributes:
        point: what was run.
        local_ranks: ranks that shared a node.
        rounds: how many were measured.
        seconds: wall time of these rounds on rank 0, what lies between them included.
        phases: seconds of each phase in these rounds, mean over the ranks; ``other`` is the rest.
        cohorts: for each round float64 (cohort,), the samples of each client.
        job_seconds: float64 (jobs,), that the training of each client took, in the order of ``samples``.
        reduce_bytes: bytes that a rank hands to collectives in a round.
        evaluated: share of the rounds that evaluate.
        adjusted: share of the rounds that move the mask.
        outside: seconds of the process before the first and behind the last round.
        peak_bytes: most memory that a rank held.
    """

    point: Point
    local_ranks: int
    rounds: int
    seconds: float
    phases: dict[str, float]
    cohorts: tuple[np.ndarray, ...]
    job_seconds: np.ndarray
    reduce_bytes: float
    evaluated: float
    adjusted: float
    outside: float
    peak_bytes: int

    @property
    def samples(self) -> np.ndarray:
        """Samples of each client that was trained, all rounds after one another, float64 (jobs,)."""
        return np.concatenate(self.cohorts)


def read_measurement(run_dir: Path, point: Point, local_ranks: int) -> Measurement:
    """The measurement that a finished run's directory holds."""
    events = read_timelines(run_dir)
    spans = [event for event in events if event["ph"] == "X"]
    measured = [event for event in spans if _round(event) > WARM_UP]
    clients = (event for event in measured if event["name"] not in PHASES)
    jobs = {n: list(group) for n, group in groupby(sorted(clients, key=_round), _round)}
    seconds = _extent(measured)
    phases = {name: _total(measured, name) / point.ranks for name in PHASES}
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()[WARM_UP:]]
    process = json.loads((run_dir / PROCESS_FILE).read_text(encoding="utf-8"))["seconds"]
    return Measurement(
        point=point,
        local_ranks=local_ranks,
        rounds=len(lines),
        seconds=seconds,
        phases=phases | {"other": seconds - sum(phases.values())},
        cohorts=tuple(np.array([job["args"]["samples"] for job in group], np.float64) for group in jobs.values()),
        job_seconds=np.array([job["dur"] * _SECONDS for group in jobs.values() for job in group]),
        reduce_bytes=float(np.mean([line["cluster/reduce_bytes"] for line in lines])),
        evaluated=float(np.mean(["eval/accuracy" in line for line in lines])),
        adjusted=float(np.mean(["sparsity/overlap" in line for line in lines])),
        outside=process - _extent(spans),
        peak_bytes=max(event["args"]["bytes"] for event in events if event["ph"] == "C"),
    )


def _round(span: dict[str, Any]) -> int:
    return int(span["args"]["round"])


def _extent(spans: Sequence[dict[str, Any]]) -> float:
    """Seconds from the first span's begin to the last one's end on rank 0."""
    own = [event for event in spans if event["pid"] == 0]
    return (max(event["ts"] + event["dur"] for event in own) - min(event["ts"] for event in own)) * _SECONDS


def _total(spans: Sequence[dict[str, Any]], name: str) -> float:
    return sum(event["dur"] for event in spans if event["name"] == name) * _SECONDS


@dataclass(frozen=True)
class Quartiles:
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """Median and quartiles of some values."""
    low, median, high = np.quantile(np.asarray(values, dtype=np.float64), (0.25, 0.5, 0.75))
    return Quartiles(float(low), float(median), float(high))


Results = dict[Point, list[Measurement]]


def round_seconds(runs: Sequence[Measurement]) -> Quartiles:
    """Wall seconds of a round, over the repetitions of a point."""
    return quartiles([run.seconds / run.rounds for run in runs])


def efficiency(runs: Sequence[Measurement], base: Sequence[Measurement]) -> Quartiles:
    """Samples that a rank trains in a second, relative to ``base``; 1 is ideal.

    Repetition i is compared with repetition i of the base, which ran shortly before or after it.
    """
    return quartiles([_rate(run) / _rate(first) for run, first in zip(runs, base, strict=True)])


def _rate(run: Measurement) -> float:
    return float(run.samples.sum()) / (run.seconds * run.point.ranks)


def losses(runs: Sequence[Measurement], base: Sequence[Measurement]) -> dict[str, float]:
    """What an efficiency lacks to 1, divided among the phases: shares of the ranks' time, medians over repetitions.

    A phase is charged with the rank-seconds that it takes beyond those of ``base`` for as many samples.
    """
    shares: dict[str, list[float]] = {}
    for run, first in zip(runs, base, strict=True):
        growth = float(run.samples.sum()) / float(first.samples.sum())
        for name, seconds in run.phases.items():
            extra = run.point.ranks * seconds - growth * first.point.ranks * first.phases[name]
            shares.setdefault(name, []).append(extra / (run.point.ranks * run.seconds))
    return {name: float(np.median(values)) for name, values in shares.items()}
