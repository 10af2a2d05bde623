"""Who takes part in a round: whom the server asks, who stays, who answers in time."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from fedmef_dist.base.randomness import numpy_generator, uniform_per_client
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.population import Population

ClientState = Literal["none", "momentum", "statistics", "both"]


class TierSettings(Settings):
    """Devices with less room than others."""

    share: float = Field(gt=0, le=1, description="share of the clients")
    density: float = Field(
        gt=0, le=1, description="active share of ALL parameters that they train, where the model has more"
    )


class FederationSettings(Settings):
    """How many clients there are, how they behave, how many train in a round, and for how long."""

    clients: int = Field(default=100, ge=1, le=2**31, description="clients in the population")
    clients_per_round: int = Field(
        default=10, ge=1, le=2**31, description="clients whose updates a round waits for, drawn without replacement"
    )
    rounds: int = Field(default=500, ge=1, le=10**7, description="rounds of the run")
    local_epochs: int = Field(default=5, ge=1, le=10**5, description="passes of a client over its samples in a round")
    batch_size: int = Field(
        default=64, ge=1, le=2**20, description="samples of a local step; the last batch of a pass may be smaller"
    )
    weighting: Literal["samples", "uniform"] = Field(
        default="samples", description="how much an update counts: as many times as its client has samples, or once"
    )
    availability: float = Field(
        default=1.0, gt=0, le=1, description="share of a day in which a client can be asked, each at its own hours"
    )
    day_rounds: int = Field(
        default=24, ge=1, le=10**7, description="rounds in a day, over which availability comes and goes"
    )
    oversample: float = Field(
        default=1.0, ge=1, le=1000, description="ask this many times clients_per_round; the first to finish are taken"
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="probability that a client that was asked drops out of the round"
    )
    speed_sigma: float = Field(
        default=0.0, ge=0, le=5, description="deviation of the logarithm of a device's speed, drawn once per client"
    )
    deadline: float | None = Field(
        default=None,
        gt=0,
        le=10**6,
        description="a client that takes longer than this many times the median is dropped",
    )
    client_state: ClientState = Field(
        default="none", description="what stays with a client from round to round; only for few clients"
    )
    tiers: list[TierSettings] = Field(
        default_factory=list,
        description="clients that train a part of the model, as {share: 0.5, density: 0.05}; the others train it all",
    )

    @model_validator(mode="after")
    def _tiers_fit_the_population(self) -> "FederationSettings":
        total = sum(tier.share for tier in self.tiers)
        if total > 1 + 1e-9:
            raise ValueError(f"the shares of tiers add up to {total:g}, more than 1; lower some")
        return self

    @model_validator(mode="after")
    def _cohort_fits_the_population(self) -> "FederationSettings":
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round is {self.clients_per_round} but there are only {self.clients} clients; "
                "lower clients_per_round or raise clients"
            )
        return self


@dataclass(frozen=True)
class Cohort:
    """One round's clients, the same on every rank.

    Attributes:
        asked: int64, the clients that received the model.
        clients: int64 (K,), those of them whose update counts, in the order of ``asked``.
        samples: int64 (K,), how many samples these hold.
        weights: int64 (K,), how often each counts in the average.
        dropped: clients that dropped out or missed the deadline.
        late: those of them that missed the deadline.
        surplus: clients that were in time when enough others had finished.
    """

    asked: np.ndarray
    clients: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    dropped: int
    late: int
    surplus: int


def total_weight(population: Population, settings: FederationSettings) -> int:
    """What all clients together would weigh in an average."""
    return population.total_samples if settings.weighting == "samples" else population.clients


def draw_cohort(population: Population, settings: FederationSettings, seed: int, round: int) -> Cohort:
    """The clients of a round; depends on nothing but (seed, round), and each client's behaviour also on the client.

    How long a client takes is its samples over its device's speed, which is lognormal around 1.
    """
    asked = _ask(population.clients, settings, seed, round)
    staying = asked[uniform_per_client(seed, "dropout", asked, round) >= settings.dropout]
    samples = population.sizes(staying)
    seconds = samples / _speeds(staying, settings.speed_sigma, seed)
    in_time = np.ones(len(staying), dtype=bool)
    if settings.deadline is not None and len(staying):
        in_time = seconds <= settings.deadline * np.median(seconds)
    late = int(np.count_nonzero(~in_time))
    finished = np.flatnonzero(in_time)
    taken = np.sort(finished[np.argsort(seconds[finished], kind="stable")[: settings.clients_per_round]])
    return Cohort(
        asked=asked,
        clients=staying[taken],
        samples=samples[taken],
        weights=samples[taken] if settings.weighting == "samples" else np.ones_like(taken),
        dropped=len(asked) - len(staying) + late,
        late=late,
        surplus=len(finished) - len(taken),
    )


def _ask(clients: int, settings: FederationSettings, seed: int, round: int) -> np.ndarray:
    """Drawn uniformly, without replacement, from those who can be reached; fewer where there are not enough."""
    # The product in decimals, as it was written: as a float that of 50 and 1.1 is a little more than 55.
    wanted = min(ceil(settings.clients_per_round * Fraction(str(settings.oversample))), clients)
    generator = numpy_generator(seed, "cohort", round)
    if settings.availability == 1:
        return generator.choice(clients, wanted, replace=False)
    everyone = np.arange(clients)
    hour = (round / settings.day_rounds + uniform_per_client(seed, "hour", everyone)) % 1
    reachable = everyone[hour < settings.availability]
    return generator.choice(reachable, min(wanted, len(reachable)), replace=False)


def _speeds(clients: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Each device's speed, float64 (n,): its normal deviate is Box and Muller's of two uniform numbers."""
    first, second = (uniform_per_client(seed, purpose, clients) for purpose in ("speed", "speed, angle"))
    return np.exp(sigma * np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second))
