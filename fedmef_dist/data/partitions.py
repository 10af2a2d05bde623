"""How the training samples fall to the clients."""

from typing import Literal

import numpy as np
from pydantic import Field

from fedmef_dist.errors import UserError
from fedmef_dist.settings import Settings

# Redraws end after this many proportions, so that an impossible request fails within seconds whatever its size.
_REDRAWS = 1_000
_PROPORTIONS = 100_000_000


class PartitionSettings(Settings):
    """A partition gives every sample to exactly one client."""

    scheme: Literal["iid", "dirichlet"] = Field(
        default="dirichlet", description="iid: equal shares; dirichlet: skewed labels"
    )
    alpha: float = Field(default=0.5, gt=0, description="concentration of the Dirichlet; smaller is more skewed")
    min_samples: int = Field(default=10, ge=1, description="fewest samples that a client may hold")


def partition_samples(
    labels: np.ndarray, clients: int, settings: PartitionSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Divide the samples among ``clients``.

    Returns a permutation ``order`` of the samples, int64 (n,), and ``offsets``, int64 (clients + 1,): client ``k``
    holds ``order[offsets[k]:offsets[k + 1]]``.

    Raises:
        UserError: there are too few samples, or no draw gave every client its ``min_samples``.
    """
    if clients * settings.min_samples > len(labels):
        raise UserError(
            f"{clients} clients with at least {settings.min_samples} samples each need "
            f"{clients * settings.min_samples} samples, the data set has {len(labels)}\n"
            "federation.clients, data.partition.min_samples\nlower one of them"
        )
    if settings.scheme == "iid":
        return generator.permutation(len(labels)), np.arange(clients + 1, dtype=np.int64) * len(labels) // clients
    return _dirichlet(labels, clients, settings, generator)


def _dirichlet(
    labels: np.ndarray, clients: int, settings: PartitionSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    class_sizes = np.bincount(labels)
    counts = _feasible_counts(class_sizes[class_sizes > 0], clients, settings, generator)
    shuffled = generator.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owners = np.repeat(np.tile(np.arange(clients), len(counts)), counts.ravel())
    offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=0))])
    return by_class[np.argsort(owners, kind="stable")], offsets


def _feasible_counts(
    class_sizes: np.ndarray, clients: int, settings: PartitionSettings, generator: np.random.Generator
) -> np.ndarray:
    tries = int(np.clip(_PROPORTIONS // (clients * len(class_sizes)), 10, _REDRAWS))
    for _ in range(tries):
        counts = draw_counts(class_sizes, clients, settings.alpha, generator)
        if counts.sum(axis=0).min() >= settings.min_samples:
            return counts
    raise UserError(
        f"none of {tries} Dirichlet draws (alpha {settings.alpha}) gave each of {clients} clients "
        f"{settings.min_samples} samples\ndata.partition\nlower min_samples or federation.clients, or raise alpha"
    )


def draw_counts(class_sizes: np.ndarray, clients: int, alpha: float, generator: np.random.Generator) -> np.ndarray:
    """One draw of the balanced label-skew partition of the paper's data setting: int64 (classes, clients).

    Each class is shared out by Dirichlet(alpha) proportions; a client that already holds n/N samples gets no more.
    The rows sum to ``class_sizes``.
    """
    counts = np.zeros((len(class_sizes), clients), dtype=np.int64)
    held = np.zeros(clients, dtype=np.int64)
    for row, size in zip(counts, class_sizes, strict=True):
        is_open = held * clients < class_sizes.sum()
        shares = generator.dirichlet(np.full(clients, alpha)) * is_open
        # All the mass may have fallen on full clients when alpha is small; then the open ones share alike.
        edges = np.cumsum(shares if shares.any() else is_open)
        # The division by the last edge makes the last open client's edge exactly 1: no remainder falls to a full one.
        cuts = np.floor(edges / edges[-1] * size).astype(np.int64)
        row[:] = np.diff(cuts, prepend=0)
        held += row
    return counts
