"""What the fitted cost model says: about the measured points, as a check, and about larger clusters."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmef_dist.scaling.cost_model import CostModel
from fedmef_dist.scaling.measurement import Measurement, Results, round_seconds
from fedmef_dist.scaling.points import Study

_DOUBLINGS = 5


@dataclass(frozen=True)
class Prediction:
    """So many ranks: seconds of a round and efficiency, with the study's cohort and with one that grows."""

    ranks: int
    strong_seconds: float
    strong_efficiency: float
    weak_seconds: float
    weak_efficiency: float


def modelled_seconds(model: CostModel, runs: Sequence[Measurement]) -> float:
    """Seconds of a measured point's round by the formula."""
    run = runs[0]
    return _mean(model, run, 1, run.point.ranks, run.local_ranks)


def predict(model: CostModel, study: Study, results: Results) -> list[Prediction]:
    """Twice, four times, ... the most ranks that were measured, on nodes filled as densely as there.

    Five doublings. Efficiency is relative to the measurement with the fewest ranks. A growing cohort repeats the sizes
    of the measured one.
    """
    base, full = results[study.strong[0]], results[study.strong[-1]][0]
    fewest, seconds = study.strong[0].ranks, round_seconds(base).median
    found = []
    for doubling in range(1, _DOUBLINGS + 1):
        ranks = full.point.ranks * 2**doubling
        strong = _mean(model, full, 1, ranks, full.local_ranks)
        weak = _mean(model, full, ranks // fewest, ranks, full.local_ranks)
        found.append(Prediction(ranks, strong, seconds * fewest / (strong * ranks), weak, seconds / weak))
    return found


def _mean(model: CostModel, run: Measurement, times: int, ranks: int, local_ranks: int) -> float:
    """Mean over the measured cohorts, each repeated so many times."""
    return float(
        np.mean(
            [
                model.round_seconds(np.tile(samples, times), ranks, local_ranks, run.reduce_bytes)
                for samples in run.cohorts
            ]
        )
    )
