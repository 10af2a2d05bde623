"""How the training samples fall to the clients."""

from typing import Literal

import numpy as np
from pydantic import Field

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.data.dirichlet import feasible_counts

Partition = tuple[np.ndarray, np.ndarray]


class PartitionSettings(Settings):
    """A partition gives every sample to at most one client; ``lazy_dirichlet`` draws each client's for itself."""

    scheme: Literal["iid", "dirichlet", "shards", "quantity", "natural", "lazy_dirichlet"] = Field(
        default="dirichlet",
        description="iid: equal shares; dirichlet: skewed labels; shards: a few labels each; quantity: skewed sizes; "
        "natural: the data set's own clients; lazy_dirichlet: each client drawn when it is needed, for millions",
    )
    alpha: float = Field(
        default=0.5, gt=0, le=1e6, description="concentration of the Dirichlet; smaller is more skewed"
    )
    balanced: bool = Field(
        default=True, description="dirichlet: a client that holds its equal share gets no more; false: the plain form"
    )
    shards: int = Field(default=2, ge=1, description="shards: pieces of the samples sorted by label that a client gets")
    quantity: Literal["lognormal", "power_law"] = Field(
        default="lognormal", description="quantity: how the clients' sizes are distributed"
    )
    sigma: float = Field(
        default=0.5, ge=0, le=5, description="lognormal and lazy_dirichlet: deviation of the logarithm of a size"
    )
    exponent: float = Field(default=2.0, gt=1, description="power_law: a size x has a density of x to the minus this")
    client_samples: int = Field(
        default=100, ge=1, le=10_000_000, description="lazy_dirichlet: mean samples of a client"
    )
    min_samples: int = Field(default=10, ge=1, description="fewest samples that a client may hold")


def partition_samples(
    labels: np.ndarray,
    clients: int,
    settings: PartitionSettings,
    generator: np.random.Generator,
    owners: np.ndarray | None = None,
) -> Partition:
    """Divide the samples among ``clients`` by any scheme but ``lazy_dirichlet``.

    Returns indices of samples ``order``, int64 (n,), each at most once, and ``offsets``, int64 (clients + 1,): client
    ``k`` holds ``order[offsets[k]:offsets[k + 1]]``. ``owners``, int64 (n,), names each sample's natural client.

    Raises:
        UserError: there are too few samples or natural clients, or no draw gave every client its ``min_samples``.
    """
    if clients * settings.min_samples > len(labels):
        raise UserError(
            (
                f"{clients} clients with at least {settings.min_samples} samples each need "
                f"{clients * settings.min_samples} samples, the data set has {len(labels)}"
            ),
            where="federation.clients, data.partition.min_samples",
            mend="lower one of them",
        )
    match settings.scheme:
        case "iid":
            return generator.permutation(len(labels)), _even_cuts(len(labels), clients)
        case "shards":
            return _shards(labels, clients, settings, generator)
        case "quantity":
            return _quantity(len(labels), clients, settings, generator)
        case "natural":
            return _natural(owners, clients, settings, generator)
    return _dirichlet(labels, clients, settings, generator)


def by_label(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The samples sorted by label, those of one label in random order, int64 (n,)."""
    shuffled = generator.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _even_cuts(samples: int, parts: int) -> np.ndarray:
    return np.arange(parts + 1, dtype=np.int64) * samples // parts


def _dirichlet(
    labels: np.ndarray, clients: int, settings: PartitionSettings, generator: np.random.Generator
) -> Partition:
    class_sizes = np.bincount(labels)
    class_sizes = class_sizes[class_sizes > 0]
    counts = feasible_counts(class_sizes, clients, settings.alpha, settings.min_samples, settings.balanced, generator)
    order = by_label(labels, generator)
    owners = np.repeat(np.tile(np.arange(clients), len(counts)), counts.ravel())
    return order[np.argsort(owners, kind="stable")], _offsets(counts.sum(axis=0))


def _shards(labels: np.ndarray, clients: int, settings: PartitionSettings, generator: np.random.Generator) -> Partition:
    """McMahan and others (2017, arXiv 1602.05629): pieces of the sorted samples, dealt out at random."""
    if clients * settings.shards > len(labels):
        raise UserError(
            f"{clients} clients with {settings.shards} shards each need as many samples, there are {len(labels)}",
            where="data.partition.shards",
            mend="lower it, or federation.clients",
        )
    cuts = _even_cuts(len(labels), clients * settings.shards)
    dealt = generator.permutation(clients * settings.shards)
    sizes = np.diff(cuts)[dealt]
    held = sizes.reshape(clients, settings.shards).sum(axis=1)
    if held.min() < settings.min_samples:
        raise UserError(
            (f"{clients} clients with {settings.shards} shards each would hold as few as {held.min()} samples"),
            where=f"data.partition.shards, min_samples={settings.min_samples}",
            mend="lower one of them, or federation.clients",
        )
    pieces = np.split(by_label(labels, generator), cuts[1:-1])
    return np.concatenate([pieces[piece] for piece in dealt]), _offsets(held)


def _quantity(samples: int, clients: int, settings: PartitionSettings, generator: np.random.Generator) -> Partition:
    """Random samples; everyone has ``min_samples``, and shares what is left in proportion to a random size."""
    if settings.quantity == "lognormal":
        shares = generator.lognormal(sigma=settings.sigma, size=clients)
    else:
        # The inverse of the distribution function, 1 - x ** (1 - exponent) from x = 1 on. Only ratios count, and near
        # an exponent of 1 sizes are beyond any float: so in logarithms, less the largest.
        logs = np.log(1 - generator.random(clients)) / (1 - settings.exponent)
        shares = np.exp(logs - logs.max())
    rest = samples - clients * settings.min_samples
    edges = np.cumsum(shares)
    sizes = settings.min_samples + np.diff(np.floor(edges / edges[-1] * rest).astype(np.int64), prepend=0)
    return generator.permutation(samples), _offsets(sizes)


def _natural(
    owners: np.ndarray | None, clients: int, settings: PartitionSettings, generator: np.random.Generator
) -> Partition:
    """The data set's own clients that hold enough; where there are more than wanted, a random choice of them."""
    if owners is None:
        raise UserError(
            "the data set does not say whose its samples are",
            where="data.partition.scheme=natural",
            mend="choose another scheme, or a data set with natural clients, as femnist is one",
        )
    held = np.bincount(owners)
    able = np.flatnonzero(held >= settings.min_samples)
    if len(able) < clients:
        raise UserError(
            (f"the data set has {len(able)} clients with {settings.min_samples} samples or more, not {clients}"),
            where="federation.clients, data.partition.min_samples",
            mend="lower one of them",
        )
    chosen = np.sort(generator.permutation(able)[:clients])
    order = np.argsort(owners, kind="stable")
    order = order[np.isin(owners[order], chosen)]
    return order, _offsets(held[chosen])


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)])
