"""What the fitted cost model says: about the measured points, as a check, and about clusters that nobody measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.cluster.collective_costs import Network
from fedmef_dist.scaling.cluster_file import Cluster
from fedmef_dist.scaling.cost_model import CostModel, Work
from fedmef_dist.scaling.fitting import fit, work_of
from fedmef_dist.scaling.measurement import Measurement, Results, round_seconds
from fedmef_dist.scaling.points import Point, Study
from fedmef_dist.scaling.probe import Probe

_COHORTS = tuple(10**power for power in range(1, 8))
_WORTH = 1.05  # ranks beyond which a round gets faster by less than this factor are of no use
_HOUR = 3600.0
FEW = 4  # ranks that a fit is given to say something of more


@dataclass(frozen=True)
class Prediction:
    """A round of so many clients on so many ranks.

    Attributes:
        ranks: of the run.
        cohort: clients of the round.
        parts: seconds of each part.
        all_reduce: the algorithm of the round's sum.
        efficiency: what one rank would take, over the seconds of all ranks together.
    """

    ranks: int
    cohort: int
    parts: dict[str, float]
    all_reduce: str
    efficiency: float

    @property
    def seconds(self) -> float:
        """Of the round."""
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        """``training`` where it takes more than all other parts together, else the largest of them."""
        others = {name: seconds for name, seconds in self.parts.items() if name != "training"}
        return (
            "training" if self.parts["training"] > sum(others.values()) else max(others, key=lambda name: others[name])
        )

    def run_seconds(self, rounds: int, start: float) -> float:
        """Of a whole run."""
        return rounds * self.seconds + start

    def device_hours(self, rounds: int, start: float) -> float:
        """Hours of all ranks together that a whole run takes."""
        return self.ranks * self.run_seconds(rounds, start) / _HOUR


@dataclass(frozen=True)
class Predictions:
    """All that is predicted for one cluster.

    Attributes:
        strong: the study's cohort on each number of ranks.
        weak: a cohort that grows with the ranks.
        cohorts: each size of cohort that is a power of ten, on each number of ranks.
        enough: for each of these cohorts the ranks beyond which a round gets faster by less than 5 %.
    """

    strong: tuple[Prediction, ...]
    weak: tuple[Prediction, ...]
    cohorts: tuple[tuple[Prediction, ...], ...]
    enough: dict[int, int]


class Predictor:
    """Predicts rounds of a run whose clients are as large as those that were measured.

    Args:
        model: fitted.
        cluster: whose ranks are meant; None: more of the measured machines, filled as densely as the fullest.
        runs: that were measured.
        seed: of the sizes of clients that are drawn.

    Attributes:
        knows_network: whether collectives have a cost: one rank alone shows none.
    """

    def __init__(self, model: CostModel, cluster: Cluster | None, runs: Sequence[Measurement], seed: int = 0) -> None:
        self.cluster = cluster
        self.model = model if cluster is None else model.on(cluster)
        self.work: Work = work_of(runs[-1])
        self.knows_network = cluster is not None or any(run.point.ranks > 1 for run in runs)
        self._local_ranks = max(run.local_ranks for run in runs)
        self._sizes = np.concatenate([run.samples for run in runs])
        self._seed = seed
        self._alone: dict[int, float] = {}

    def network(self, ranks: int) -> Network:
        """That of so many ranks."""
        if self.cluster is not None:
            return self.cluster.network(ranks)
        return self.model.network(ranks, self._local_ranks)

    def samples(self, cohort: int) -> np.ndarray:
        """A cohort's sizes, float64 (cohort,), drawn from those that were measured."""
        return numpy_generator(self._seed, "predicted cohort", cohort).choice(self._sizes, cohort)

    def predict(self, ranks: int, cohort: int) -> Prediction:
        """A round."""
        network = self.network(ranks)
        parts = self.model.parts(self.samples(cohort), network, self.work)
        name = self.model.all_reduce_name(cohort, network, self.work) if ranks > 1 else "none"
        if cohort not in self._alone:
            self._alone[cohort] = sum(self.model.parts(self.samples(cohort), self.network(1), self.work).values())
        seconds = sum(parts.values())
        return Prediction(ranks, cohort, parts, name, self._alone[cohort] / (ranks * seconds) if seconds else 1.0)

    def all(self, study: Study, ranks: Sequence[int]) -> Predictions:
        """Strong and weak scaling to these numbers of ranks, and cohorts of 10 to 10 million on them."""
        cohort, fewest = study.strong[0].cohort, study.strong[0].ranks
        return Predictions(
            strong=tuple(self.predict(number, cohort) for number in ranks),
            weak=tuple(self.predict(number, max(cohort * number // fewest, 1)) for number in ranks),
            cohorts=tuple(tuple(self.predict(number, size) for number in ranks) for size in _COHORTS),
            enough={size: self.enough(size, max(ranks)) for size in _COHORTS},
        )

    def enough(self, cohort: int, most: int) -> int:
        """The least power of two of ranks, up to ``most``, after which no more ranks make a round 5 % faster."""
        numbers = [2**power for power in range(most.bit_length())]
        seconds = [self.predict(number, cohort).seconds for number in numbers]
        return next(number for place, number in enumerate(numbers) if seconds[place] <= _WORTH * min(seconds[place:]))


def modelled_seconds(model: CostModel, runs: Sequence[Measurement]) -> float:
    """Seconds of a measured point's round by the formula, mean over its cohorts."""
    run, work = runs[0], work_of(runs[0])
    network = model.network(run.point.ranks, run.local_ranks)
    return float(np.mean([sum(model.parts(samples, network, work).values()) for samples in run.cohorts]))


@dataclass(frozen=True)
class HeldOut:
    """A measured point that the fit has not seen; seconds of a round."""

    point: Point
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was measured."""
        return self.predicted / self.measured - 1


def held_out(results: Results, probes: Sequence[Probe], draw: float) -> list[HeldOut]:
    """Measured points of more ranks than four, predicted from those with at most four; none without either."""
    few = [run for runs in results.values() for run in runs if run.point.ranks <= FEW]
    many = {point: runs for point, runs in results.items() if point.ranks > FEW}
    if not few or not many:
        return []
    model = fit(few, [probe for probe in probes if probe.ranks <= FEW], draw).model
    found = [HeldOut(point, round_seconds(runs).median, modelled_seconds(model, runs)) for point, runs in many.items()]
    return sorted(found, key=lambda each: (each.point.ranks, each.point.cohort))


def all_runs(results: Results) -> list[Measurement]:
    """Every run of a study, those with the most ranks last."""
    runs = [run for each in results.values() for run in each]
    return sorted(runs, key=lambda run: run.point.ranks)
