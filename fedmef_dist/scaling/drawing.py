"""What drawing a cohort and placing it costs each rank, measured where the study is evaluated."""

import time

import numpy as np

from fedmef_dist.clients.cohort import FederationSettings, draw_cohort
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import LazyPopulation
from fedmef_dist.sums.placement import assign

_CLIENTS, _COHORT, _RANKS, _TIMES = 10_000_000, 40_960, 4096, 3


def drawing_seconds() -> float:
    """Processor seconds a client, for 40,960 of ten million on 4,096 ranks, drawn lazily, which costs most."""
    population = LazyPopulation(np.zeros(1, np.int64), _CLIENTS, PartitionSettings(scheme="lazy_dirichlet"), 0)
    settings, found = FederationSettings(clients=_CLIENTS, clients_per_round=_COHORT), []
    for number in range(1 + _TIMES):  # the first loads compiled loops
        start = time.process_time()
        assign(draw_cohort(population, settings, 0, number).samples, _RANKS)
        found.append(time.process_time() - start)
    return min(found[1:]) / _COHORT
