"""Who owns which samples, and who takes part in a round. A million clients cost integers, not objects."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.data.partitions import PartitionSettings, partition_samples
from fedmef_dist.randomness import numpy_generator
from fedmef_dist.settings import Settings


class FederationSettings(Settings):
    """How many clients there are, how many train in a round, and for how long."""

    clients: int = Field(default=100, ge=1, description="clients of the population")
    clients_per_round: int = Field(
        default=10, ge=1, description="clients that train in a round, drawn without replacement"
    )
    rounds: int = Field(default=500, ge=1, description="rounds of the run")
    local_epochs: int = Field(default=5, ge=1, description="passes of a client over its samples in a round")
    batch_size: int = Field(
        default=64, ge=1, description="samples of a local step; the last batch of a pass may be smaller"
    )

    @model_validator(mode="after")
    def _cohort_fits_the_population(self) -> "FederationSettings":
        if self.clients_per_round > self.clients:
            raise ValueError(
                f"clients_per_round is {self.clients_per_round} but there are only {self.clients} clients; "
                "lower clients_per_round or raise clients"
            )
        return self


@dataclass(frozen=True)
class Population:
    """Client ``k`` owns ``order[offsets[k]:offsets[k + 1]]``; both int64, ``order`` a permutation of the samples."""

    order: np.ndarray
    offsets: np.ndarray

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64 (clients,)."""
        return np.diff(self.offsets)

    def samples(self, client: int) -> np.ndarray:
        """The client's indices into the training split, a view, int64 (n_k,)."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]


def build_population(
    labels: Tensor, federation: FederationSettings, partition: PartitionSettings, seed: int
) -> Population:
    """Divide the samples with these labels, int64 (n,), among the clients; the same on every rank.

    Raises:
        UserError: the samples do not suffice for the clients.
    """
    generator = numpy_generator(seed, "partition")
    return Population(*partition_samples(labels.cpu().numpy(), federation.clients, partition, generator))


def sample_cohort(population: Population, per_round: int, seed: int, round: int) -> np.ndarray:
    """The round's clients, drawn uniformly without replacement, int64 (per_round,); the same on every rank."""
    return numpy_generator(seed, "cohort", round).choice(population.clients, per_round, replace=False)
