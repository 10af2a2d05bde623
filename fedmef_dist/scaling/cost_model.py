"""Seconds of a round as a formula, fitted to a study's measurements, for clusters that nobody has measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmef_dist.scaling.measurement import Measurement
from fedmef_dist.sums.placement import assign


@dataclass(frozen=True)
class CostModel:
    """A round takes what its slowest rank trains, the reduction, the test set's share, and a rest that does not shrink.

    Attributes:
        client: seconds that a client takes whatever its samples.
        sample: seconds of training a sample costs on a node with one rank.
        neighbour: seconds a sample costs more for each further rank on the node.
        latency: seconds of a reduction for each doubling of the ranks.
        byte: seconds of a reduction for each byte that a ring all-reduce moves.
        evaluate: seconds that the test set takes on one rank, spread over all rounds.
        rest: seconds a round of everything else, the server's update with them.
    """

    client: float
    sample: float
    neighbour: float
    latency: float
    byte: float
    evaluate: float
    rest: float

    def round_seconds(self, samples: np.ndarray, ranks: int, local_ranks: int, reduce_bytes: float) -> float:
        """Seconds of a round whose cohort holds so many samples, (cohort,), placed as a run places it."""
        costs = self.client + samples * (self.sample + self.neighbour * (local_ranks - 1))
        busy = assign(costs, ranks).loads(costs).max()
        reduce = self.latency * np.log2(ranks) + self.byte * _ring_bytes(reduce_bytes, ranks)
        return float(busy + reduce + self.evaluate / ranks + self.rest)


def fit(runs: Sequence[Measurement]) -> CostModel:
    """The formula that fits these runs best, by least squares with no negative cost."""
    samples = np.concatenate([run.samples for run in runs])
    others = np.concatenate([np.full(len(run.samples), run.local_ranks - 1) for run in runs])
    jobs = np.concatenate([run.job_seconds for run in runs])
    client, sample, neighbour = _non_negative([np.ones_like(samples), samples, samples * others], jobs)
    several = [run for run in runs if run.point.ranks > 1]
    rows = [(np.log2(run.point.ranks), _ring_bytes(run.reduce_bytes, run.point.ranks)) for run in several]
    latency, byte = _non_negative(
        list(np.array(rows).reshape(-1, 2).T), np.array([run.phases["reduce"] / run.rounds for run in several])
    )
    return CostModel(
        client=client,
        sample=sample,
        neighbour=neighbour,
        latency=latency,
        byte=byte,
        evaluate=float(np.mean([run.phases["eval"] * run.point.ranks / run.rounds for run in runs])),
        rest=float(np.mean([_rest(run) for run in runs])),
    )


def _rest(run: Measurement) -> float:
    """Seconds a round outside of training, waiting, reduction and evaluation, mean over the ranks."""
    between_jobs = run.phases["train"] - float(run.job_seconds.sum()) / run.point.ranks
    return (run.phases["adjust"] + run.phases["other"] + between_jobs) / run.rounds


def _ring_bytes(size: float, ranks: int) -> float:
    """Bytes that a rank sends in a ring all-reduce of so many bytes."""
    return 2 * (ranks - 1) / ranks * size


def _non_negative(columns: Sequence[np.ndarray], values: np.ndarray) -> list[float]:
    """Least squares without negative coefficients: what comes out negative is left out and the rest fitted again."""
    scales = [float(np.abs(column).max(initial=0.0)) for column in columns]
    kept = [number for number, scale in enumerate(scales) if scale > 0]
    result = [0.0] * len(columns)
    while kept:
        matrix = np.stack([columns[number] / scales[number] for number in kept], axis=1)
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        if (solution >= 0).all():
            for number, coefficient in zip(kept, solution, strict=True):
                result[number] = float(coefficient) / scales[number]
            break
        kept.pop(int(np.argmin(solution)))
    return result
