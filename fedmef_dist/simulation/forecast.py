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

# At least so many rounds are looked at, more where fewer clients take part; of those behind them, so many are asked
# whether they adjust the mask.
_ROUNDS = 50
_UPDATES = 50_000
_PROBES = 200
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
        adjusts: whether it ends with a new mask.
        asked, trained, dropped, surplus: clients.
        up_bytes, down_bytes: encoded bytes of all clients together.
        flops: of all clients together.
        rank_clients: clients that each rank trains.
        imbalance: samples of the most loaded rank over the mean.
    """

    adjusts: bool
    asked: int
    trained: int
    dropped: int
    surplus: int
    up_bytes: int
    down_bytes: int
    flops: float
    rank_clients: list[int]
    imbalance: float


@dataclass(frozen=True)
class Forecast:
    """What a run would be.

    Attributes:
        rounds: the first rounds, all of them unless many clients take part in each.
        wire_bytes: encoded bytes of the whole run, those before the first round included.
        flops: of the whole run, likewise.
    """

    rounds: list[PlannedRound]
    wire_bytes: float
    flops: float


def look_at_partition(dataset: Dataset | TextDataset, population: Population, seed: int) -> PartitionView:
    """Counts the labels of every client, or of a thousand drawn from the seed where there are more."""
    chosen = np.arange(min(population.clients, _CLIENTS))
    if population.clients > _CLIENTS:
        chosen = np.sort(numpy_generator(seed, "plan").choice(population.clients, _CLIENTS, replace=False))
    labels = dataset.train.labels.cpu().numpy()
    classes = int(labels.max()) + 1
    rows = [np.bincount(labels[population.samples(client)], minlength=classes) for client in chosen.tolist()]
    return PartitionView(population.clients, np.stack(rows))


def foretell(simulation: Simulation, ranks: int) -> Forecast:
    """The cohorts of the first rounds are drawn and accounted for as in a run, but nobody trains.

    The mask stays as it is at the start; where the method would change it, it counts as changed. All rounds are looked
    at where that is quick; else those that are left count as the mean of those looked at, rounds that adjust the mask
    and others each for themselves.
    """
    federation, totals = simulation.config.federation, simulation.totals
    looked = min(federation.rounds, max(_ROUNDS, _UPDATES // federation.clients_per_round))
    place = _placing(simulation, ranks)
    rounds = [_plan_round(simulation, number, place) for number in range(1, looked + 1)]
    wire_bytes, flops, left = float(totals.wire_bytes), totals.flops, federation.rounds - looked
    for part in _kinds(simulation, rounds, left, place):
        wire_bytes += part.share * left * float(np.mean([one.up_bytes + one.down_bytes for one in part.rounds]))
        flops += part.share * left * float(np.mean([one.flops for one in part.rounds]))
    return Forecast(rounds, wire_bytes, flops)


def _plan_round(simulation: Simulation, number: int, place: Callable[[Cohort], Placement]) -> PlannedRound:
    config, space = simulation.config, simulation.space
    cohort = draw_cohort(simulation.population, config.federation, config.seed, number)
    plan = simulation.method.plan(number, simulation.server.values)
    costs = simulation.accounting.round(cohort, plan, space.mask, simulation.totals)
    foreseen = simulation.method.foreseen_mask(number)
    if plan.adjusts or foreseen is not None:
        space.set_mask(space.mask.next(space.mask.active if foreseen is None else foreseen))
    placement = place(cohort)
    loads = placement.loads(cohort.samples)
    return PlannedRound(
        adjusts=plan.adjusts,
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


@dataclass(frozen=True)
class _Kind:
    """Rounds that adjust the mask, or those that do not: their share of what is left, and some that stand for them."""

    share: float
    rounds: list[PlannedRound]


def _kinds(
    simulation: Simulation, rounds: list[PlannedRound], left: int, place: Callable[[Cohort], Placement]
) -> list[_Kind]:
    """What the rounds behind those looked at are like; which of them adjust the mask, some drawn from the seed tell."""
    if not left:
        return []
    probes = len(rounds) + 1 + np.arange(left)
    if left > _PROBES:
        drawn = numpy_generator(simulation.config.seed, "plan, rounds").choice(left, _PROBES, replace=False)
        probes = np.sort(probes[drawn])
    adjusting = [
        number for number in probes.tolist() if simulation.method.plan(number, simulation.server.values).adjusts
    ]
    share = len(adjusting) / len(probes)
    seen = {kind: [one for one in rounds if one.adjusts == kind] for kind in (True, False)}
    if adjusting and not seen[True]:
        seen[True] = [_plan_round(simulation, adjusting[0], place)]
    return [_Kind(part, seen[kind] or rounds) for kind, part in ((True, share), (False, 1 - share)) if part]


def _placing(simulation: Simulation, ranks: int) -> Callable[[Cohort], Placement]:
    """Places a cohort as a run would before it has measured anything."""
    if simulation.local.kept is None:
        return lambda cohort: assign(cohort.samples, ranks)
    owner = assign(simulation.population.sizes(np.arange(simulation.population.clients)), ranks).ranks
    return lambda cohort: Placement(ranks, owner[cohort.clients], np.arange(len(cohort.clients)))
