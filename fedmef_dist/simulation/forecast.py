"""What a run would be like, without training: who holds what, what a round moves and computes, how ranks share it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.cohort import Cohort, draw_cohort
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.population import Population
from fedmef_dist.data.text import TextDataset
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sums.placement import Placement, assign

_ROUNDS = 50
_CLIENTS = 1000


@dataclass(frozen=True)
class PartitionView:
    """A look at some clients: all of them, or a thousand drawn from the seed.

    Attributes:
        clients: in the population.
        counts: int64 (clients looked at, classes), samples of each label.
    """

    clients: int
    counts: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64."""
        return self.counts.sum(axis=1)

    @property
    def labels(self) -> np.ndarray:
        """How many labels each client holds, int64."""
        return np.count_nonzero(self.counts, axis=1)

    @property
    def dominance(self) -> np.ndarray:
        """The share of each client's commonest label, float64."""
        return self.counts.max(axis=1) / self.sizes


@dataclass(frozen=True)
class PlannedRound:
    """What one round of a run would be, as far as it depends on no weight.

    Attributes:
        asked, trained, dropped, surplus: clients.
        up_bytes, down_bytes: encoded bytes of all clients together.
        flops: of all clients together.
        rank_clients: clients that each rank trains.
        imbalance: samples of the most loaded rank over the mean.
    """

    asked: int
    trained: int
    dropped: int
    surplus: int
    up_bytes: int
    down_bytes: int
    flops: float
    rank_clients: list[int]
    imbalance: float


def look_at_partition(dataset: Dataset | TextDataset, population: Population, seed: int) -> PartitionView:
    """Counts the labels of every client, or of a thousand drawn from the seed where there are more."""
    chosen = np.arange(min(population.clients, _CLIENTS))
    if population.clients > _CLIENTS:
        chosen = np.sort(numpy_generator(seed, "plan").choice(population.clients, _CLIENTS, replace=False))
    labels = dataset.train.labels.cpu().numpy()
    classes = int(labels.max()) + 1
    rows = [np.bincount(labels[population.samples(client)], minlength=classes) for client in chosen.tolist()]
    return PartitionView(population.clients, np.stack(rows))


def plan_rounds(simulation: Simulation, ranks: int) -> list[PlannedRound]:
    """The first rounds, at most 50: their cohorts are drawn and accounted for as in a run, but nobody trains.

    The mask stays as it is at the start; where the method would change it, it counts as changed.
    """
    config, space = simulation.config, simulation.space
    share_out = _placing(simulation, ranks)
    rounds = []
    for number in range(1, min(config.federation.rounds, _ROUNDS) + 1):
        cohort = draw_cohort(simulation.population, config.federation, config.seed, number)
        plan = simulation.method.plan(number, simulation.server.values)
        costs = simulation.accounting.round(cohort, plan, space.mask, simulation.totals)
        if plan.adjusts:
            space.set_mask(space.mask.next(space.mask.active))
        placement = share_out(cohort)
        loads = placement.loads(cohort.samples)
        rounds.append(
            PlannedRound(
                asked=len(cohort.asked),
                trained=len(cohort.clients),
                dropped=cohort.dropped,
                surplus=cohort.surplus,
                up_bytes=int(costs["wire/up_bytes"]),
                down_bytes=int(costs["wire/down_bytes"]),
                flops=float(costs["flops/train"]),
                rank_clients=placement.counts().tolist(),
                imbalance=float(loads.max() / loads.mean()) if loads.any() else 1.0,
            )
        )
    return rounds


def _placing(simulation: Simulation, ranks: int) -> Callable[[Cohort], Placement]:
    """Places a cohort as a run would before it has measured anything."""
    if simulation.local.kept is None:
        return lambda cohort: assign(cohort.samples, ranks)
    owner = assign(simulation.population.sizes(np.arange(simulation.population.clients)), ranks).ranks
    return lambda cohort: Placement(ranks, owner[cohort.clients], np.arange(len(cohort.clients)))
