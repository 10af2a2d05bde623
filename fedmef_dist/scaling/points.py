"""What a scaling study measures: its points, and the runs that they are."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config

# The first round opens connections and warms caches; the placement learns what clients cost.
WARM_UP = 1


@dataclass(frozen=True)
class Point:
    """One size of run: ranks, clients of the population, clients of a round."""

    ranks: int
    clients: int
    cohort: int

    @property
    def name(self) -> str:
        """The name of its runs."""
        return f"ranks-{self.ranks}_clients-{self.clients}_cohort-{self.cohort}"

    def overrides(self, rounds: int) -> list[str]:
        """What changes in the configuration; ``rounds`` are measured after the warm-up."""
        return [
            f"name={self.name}",
            f"federation.clients={self.clients}",
            f"federation.clients_per_round={self.cohort}",
            f"federation.rounds={WARM_UP + rounds}",
            "checkpoint.every=1000000",
            "tracking.console=false",
            "tracking.timeline=true",
            "tracking.wandb.mode=disabled",
        ]


@dataclass(frozen=True)
class Study:
    """The points of a study; those of the three questions overlap.

    Attributes:
        strong: the configuration's cohort on more and more ranks.
        weak: a cohort that grows with the ranks.
        population: more and more clients, on as few ranks as there are points for.
    """

    strong: tuple[Point, ...]
    weak: tuple[Point, ...]
    population: tuple[Point, ...]

    @property
    def points(self) -> list[Point]:
        """Each point once."""
        return list(dict.fromkeys(chain(self.strong, self.weak, self.population)))


def plan_study(config: Config, ranks: Sequence[int], clients: Sequence[int]) -> Study:
    """The points for these numbers of ranks and of clients.

    Raises:
        UserError: the population is too small for the cohort of the most ranks.
    """
    population, cohort = config.federation.clients, config.federation.clients_per_round
    fewest, most = min(ranks), max(ranks)
    if cohort * most // fewest > population:
        raise UserError(
            (f"weak scaling needs {cohort * most // fewest} clients a round, federation.clients is {population}"),
            where="--ranks",
            mend="raise federation.clients, lower federation.clients_per_round, or use fewer ranks",
        )
    return Study(
        strong=tuple(Point(number, population, cohort) for number in ranks),
        weak=tuple(Point(number, population, cohort * number // fewest) for number in ranks),
        population=tuple(Point(fewest, number, min(cohort, number)) for number in clients),
    )


def parse_numbers(text: str, option: str) -> list[int]:
    """Ascending numbers of a list such as "1,2,4", none of an empty text. Raises UserError where it is no list."""
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,11}", word) for word in words):
        raise UserError(
            f"{text[:80]!r} is not a list of numbers", where=option, mend=f"write for example {option} 1,2,4"
        )
    return sorted({int(word) for word in words})
