import numpy as np

from fedmef_dist.scaling.measurement import Measurement
from fedmef_dist.scaling.points import Point


def measurement(ranks, train, cohort=(10.0, 20.0), rounds=2, wait=0.0, reduce=0.0, adjust=0.0, eval=0.0, other=0.0):
    """A run of `rounds` equal rounds; the phases are seconds a round, mean over the ranks."""
    phases = {"train": train, "wait": wait, "reduce": reduce, "adjust": adjust, "eval": eval, "other": other}
    sizes = np.array(cohort)
    return Measurement(
        point=Point(ranks, 50, len(sizes)),
        local_ranks=ranks,
        rounds=rounds,
        seconds=rounds * sum(phases.values()),
        phases={name: rounds * seconds for name, seconds in phases.items()},
        cohorts=(sizes,) * rounds,
        job_seconds=np.tile(sizes / sizes.sum() * train * ranks, rounds),
        reduce_bytes=1000.0,
        evaluated=1.0,
        adjusted=0.0,
        outside=3.0,
        peak_bytes=200_000_000,
    )
