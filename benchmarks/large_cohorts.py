"""What a round costs a rank before anybody trains: drawing the cohort, the sizes of its clients, placing them.

    python benchmarks/large_cohorts.py                                # 40,960 clients on 4,096 ranks, a million on 16
    python benchmarks/large_cohorts.py --cohort 1000000 --ranks 4096

Seconds of this process's own processor time, best of the repetitions. `lazy` is a population of clients that are drawn
when they are asked for (`data.partition.scheme: lazy_dirichlet`), `fixed` one that lies in memory.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from fedmef_dist.clients.cohort import FederationSettings, draw_cohort
from fedmef_dist.data.partitions import PartitionSettings
from fedmef_dist.data.population import FixedPopulation, LazyPopulation, Population
from fedmef_dist.sums.placement import TrainingTimes


def populations(clients: int) -> dict[str, Population]:
    """One of each kind, with so many clients."""
    sizes = np.random.default_rng(0).integers(10, 100, clients)
    return {
        "lazy": LazyPopulation(
            np.zeros(100, np.int64), clients, PartitionSettings(scheme="lazy_dirichlet", client_samples=50), 0
        ),
        "fixed": FixedPopulation(np.empty(0, np.int64), np.concatenate([[0], np.cumsum(sizes)])),
    }


def seconds(work: Callable[[int], object], repeats: int) -> float:
    """The least processor time of a call; each is given its number."""
    found = []
    for number in range(repeats + 1):  # the first loads compiled loops
        start = time.process_time()
        work(number)
        found.append(time.process_time() - start)
    return min(found[1:])


def measure(population: Population, cohort: int, ranks: int, repeats: int) -> tuple[float, float]:
    """Seconds of drawing a cohort, and of placing it."""
    settings, times = FederationSettings(clients=population.clients, clients_per_round=cohort), TrainingTimes()
    draw = seconds(lambda number: draw_cohort(population, settings, 0, number), repeats)
    samples = draw_cohort(population, settings, 0, 1).samples
    return draw, seconds(lambda number: times.place(samples, ranks).slots(ranks - 1), repeats)


def main() -> None:
    """Prints a line for each kind of population and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohort", type=int, nargs="*", default=[40_960, 1_000_000])
    parser.add_argument("--ranks", type=int, nargs="*", default=[16, 4096])
    parser.add_argument("--clients", type=int, default=2_000_000, help="of the population")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print("population  cohort    ranks  drawing (ms)  placing (ms)")
    for kind, population in populations(options.clients).items():
        for cohort in options.cohort:
            for ranks in options.ranks:
                draw, place = measure(population, cohort, ranks, options.repeats)
                print(f"{kind:10}  {cohort:8,}  {ranks:5,}  {1000 * draw:12.1f}  {1000 * place:12.1f}", flush=True)


if __name__ == "__main__":
    main()
