"""Label skew: each class is shared out to the clients by Dirichlet proportions."""

import numpy as np

from fedmef_dist.base.errors import UserError

# Redraws end after this many proportions, so that an impossible request fails within seconds whatever its size.
_REDRAWS = 1_000
_PROPORTIONS = 100_000_000


def feasible_counts(
    class_sizes: np.ndarray,
    clients: int,
    alpha: float,
    min_samples: int,
    balanced: bool,
    generator: np.random.Generator,
) -> np.ndarray:
    """The first draw of :func:`draw_counts` that gives every client its ``min_samples``, int64 (classes, clients).

    Raises:
        UserError: no draw did.
    """
    tries = int(np.clip(_PROPORTIONS // (clients * len(class_sizes)), 10, _REDRAWS))
    for _ in range(tries):
        counts = draw_counts(class_sizes, clients, alpha, generator, balanced)
        if counts.sum(axis=0).min() >= min_samples:
            return counts
    raise UserError(
        (f"none of {tries} Dirichlet draws (alpha {alpha}) gave each of {clients} clients {min_samples} samples"),
        where="data.partition",
        mend="lower min_samples or federation.clients, or raise alpha",
    )


def draw_counts(
    class_sizes: np.ndarray, clients: int, alpha: float, generator: np.random.Generator, balanced: bool = True
) -> np.ndarray:
    """One draw of a label-skew partition, int64 (classes, clients); the rows sum to ``class_sizes``.

    Each class is shared out by Dirichlet(alpha) proportions. In the balanced form, the data setting of the FedMef
    paper, a client that already holds n/N samples gets no more; in the plain form sizes fall as they may.
    """
    counts = np.zeros((len(class_sizes), clients), dtype=np.int64)
    held = np.zeros(clients, dtype=np.int64)
    for row, size in zip(counts, class_sizes, strict=True):
        is_open = held * clients < class_sizes.sum() if balanced else np.ones(clients, dtype=bool)
        shares = generator.dirichlet(np.full(clients, alpha)) * is_open
        # All the mass may have fallen on full clients when alpha is small; then the open ones share alike.
        edges = np.cumsum(shares if shares.any() else is_open)
        # The division by the last edge makes the last open client's edge exactly 1: no remainder falls to a full one.
        cuts = np.floor(edges / edges[-1] * size).astype(np.int64)
        row[:] = np.diff(cuts, prepend=0)
        held += row
    return counts
