"""Who owns which samples. A million clients cost integers, or nothing before they are sampled; never objects."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator, uniform_per_client
from fedmef_dist.data.partitions import PartitionSettings, partition_samples


class Population(Protocol):
    """The clients of a federation, numbered from 0; the same on every rank."""

    @property
    def clients(self) -> int:
        """The number of clients."""

    @property
    def total_samples(self) -> int:
        """Samples of all clients together."""

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Samples of each of these clients, int64 (n,)."""

    def samples(self, client: int) -> np.ndarray:
        """One client's indices into the training split, int64 (n_k,)."""


@dataclass(frozen=True)
class FixedPopulation:
    """Client ``k`` owns ``order[offsets[k]:offsets[k + 1]]``; both int64, ``order`` holds a sample at most once."""

    order: np.ndarray
    offsets: np.ndarray

    @property
    def clients(self) -> int:
        """The number of clients."""
        return len(self.offsets) - 1

    @property
    def total_samples(self) -> int:
        """Samples of all clients together."""
        return int(self.offsets[-1] - self.offsets[0])

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Samples of each of these clients, int64 (n,)."""
        return self.offsets[clients + 1] - self.offsets[clients]

    def samples(self, client: int) -> np.ndarray:
        """One client's indices into the training split, a view, int64 (n_k,)."""
        return self.order[self.offsets[client] : self.offsets[client + 1]]


@dataclass(frozen=True)
class LazyPopulation:
    """Clients that exist when they are asked for: number, label mix and samples of one depend on (seed, client) alone.

    A client's number of samples is lognormal around ``client_samples``, its label mix Dirichlet(alpha) over the
    classes, its samples are drawn with replacement; so clients overlap, as they must when they are many.

    Attributes:
        labels: int64 (n,), of the training split.
        clients: how many there are.
        settings: the partition.
        seed: the run's seed.
    """

    labels: np.ndarray
    clients: int
    settings: PartitionSettings
    seed: int

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The samples sorted by label, and of each class that has any the first place and the size; int64."""
        sizes = np.bincount(self.labels)
        starts = np.cumsum(sizes) - sizes
        return np.argsort(self.labels, kind="stable"), starts[sizes > 0], sizes[sizes > 0]

    @property
    def total_samples(self) -> int:
        """How many samples all clients together can be expected to have: nobody asks each of a million."""
        return self.clients * max(self.settings.client_samples, self.settings.min_samples)

    def sizes(self, clients: np.ndarray) -> np.ndarray:
        """Samples of each of these clients, int64 (n,)."""
        # The middle of each number's step, so that none is 0.
        uniform = uniform_per_client(self.seed, "size", clients) + 2.0**-54
        normal = torch.special.ndtri(torch.from_numpy(uniform)).numpy()
        sigma = self.settings.sigma
        drawn = self.settings.client_samples * np.exp(sigma * normal - sigma**2 / 2)
        return np.maximum(np.rint(drawn).astype(np.int64), self.settings.min_samples)

    def samples(self, client: int) -> np.ndarray:
        """One client's indices into the training split, int64 (n_k,); a sample may stand there twice."""
        order, starts, sizes = self.classes
        generator = numpy_generator(self.seed, "client", client)
        (count,) = self.sizes(np.array([client]))
        mix = generator.multinomial(count, generator.dirichlet(np.full(len(sizes), self.settings.alpha)))
        places = np.repeat(starts, mix) + (generator.random(count) * np.repeat(sizes, mix)).astype(np.int64)
        return order[places]


def build_population(
    labels: Tensor, owners: Tensor | None, clients: int, partition: PartitionSettings, seed: int
) -> Population:
    """Divide the training samples with these labels among the clients; the same on every rank.

    Args:
        labels: int64 (n,).
        owners: int64 (n,), whose each sample is by nature; None where the data set does not say.
        clients: how many there are.
        partition: how.
        seed: the run's seed.

    Raises:
        UserError: the samples, or the natural clients, do not suffice.
    """
    known = labels.cpu().numpy()
    if partition.scheme == "lazy_dirichlet":
        if not len(known):
            raise UserError("the data set has no training samples", where="data.dataset", mend="choose another")
        return LazyPopulation(known, clients, partition, seed)
    natural = None if owners is None else owners.cpu().numpy()
    return FixedPopulation(*partition_samples(known, clients, partition, numpy_generator(seed, "partition"), natural))
