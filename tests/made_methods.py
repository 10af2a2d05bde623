"""What tests of methods need beside the method: sums as clients would have sent them, a server, a seed."""

import numpy as np
import torch
from tiny import alone

from fedmef_dist.comm.exact_sum import FixedPoint
from fedmef_dist.comm.sparse import Sums
from fedmef_dist.server import Server
from fedmef_dist.server_optimizer import ServerOptimizer, ServerOptimizerSettings

FORMAT = FixedPoint(20)


def vector(entries, size=12):
    """float32 (size,) with these entries, 0 elsewhere."""
    values = torch.zeros(size)
    for position, value in entries.items():
        values[position] = value
    return values


def sums_of(*clients, size=12):
    """The sums of clients (weight, {position: value}), with votes."""
    total, votes = torch.zeros(2, size, dtype=torch.int64)
    for weight, entries in clients:
        for position, value in entries.items():
            total[position] += FORMAT.encode(torch.tensor(float(value)), weight)
            votes[position] += weight
    return Sums(total, votes, sum(weight for weight, _ in clients), FORMAT)


def gradients(values):
    """The collections of a round whose aggregated gradient is ``values``, float32 (n,)."""
    return {"gradient": Sums(FORMAT.encode(values, 1), None, 1, FORMAT)}


def server_for(method):
    """A server of one rank, without a server optimiser."""
    return Server(method.space, method, ServerOptimizer(ServerOptimizerSettings(), method.space), alone())


class Seeded:
    """A preparation that has nothing but a seed and the start values."""

    def __init__(self, seed, values=None):
        self.seed, self.values = seed, values

    def generator(self, purpose):
        return np.random.default_rng(self.seed)
