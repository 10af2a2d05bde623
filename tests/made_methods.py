"""What tests of methods need in addition to the method: sums as clients would have sent them, a server, a seed."""

import numpy as np
import torch
from tiny import alone
from torch import nn

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.kept_state import KeptStates
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.methods.server_optimizer import ServerOptimizer, ServerOptimizerSettings
from fedmef_dist.simulation.server import Server
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.cohort_sum import CohortSum
from fedmef_dist.sums.exact_sum import FixedPoint
from fedmef_dist.sums.position_sum import Sums
from fedmef_dist.wire.ledger import WireLedger, WireSettings
from fedmef_dist.wire.messages import Messages

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


def adjust(server, plan, sums, look=lambda: None):
    """Prunes and grows; returns what ``look()`` has seen at each step, by the step's name."""
    return {step: look() for step in server.adjust(plan, sums)}


def positions(active):
    """Where a bool vector is set, as a list."""
    return active.nonzero().flatten().tolist()


def messages_for(space, **wire):
    """The messages of a space's clients; the other arguments are keys of the section ``wire``."""
    return Messages(WireLedger(space, 3, WireSettings(**wire)))


class Seeded:
    """A preparation that has nothing but a seed and the start values."""

    def __init__(self, seed, values=None):
        self.seed, self.values = seed, values

    def generator(self, purpose):
        return np.random.default_rng(self.seed)


def preparation_for(model, space, clients, wire=None, *, seed=0, **options):
    """A preparation with these clients, each one batch (inputs, labels); the server has the batches of all as one.

    ``wire`` has keys of the section of this name.
    """
    samples = np.array([len(labels) for _, labels in clients], dtype=np.int64)
    places = np.arange(len(clients))
    cohort = Cohort(places, places, samples, samples, dropped=0, late=0, surplus=0)

    def batches(client, epochs):
        return iter([tuple(map(torch.cat, zip(*clients, strict=True))) if client is None else clients[client]] * epochs)

    client = Client(model, space, OptimizerSettings(), autocast=False)
    return Preparation(
        client, space.values, cohort, batches, seed, alone(), messages_for(space, **(wire or {})), **options
    )


class PullTo(Client):
    """A client whose loss is (w - t)^2 / 2 of the one weight w and its target t, so that the gradient is w - t."""

    def __init__(self, model, space):
        super().__init__(model, space, OptimizerSettings(), autocast=False)

    def loss(self, batch):
        inputs, targets = batch
        return (self.model(inputs).flatten() - targets).square().mean() / 2


class Pair:
    """Two clients with targets 4 and -2 that make two steps at rate 1/2 in each round, and a server that starts at 0.

    Every part is a run's own, but for the loss.
    """

    TARGETS = (4.0, -2.0)

    def __init__(self, make, weights=(1, 1), population=2):
        model = nn.Linear(1, 1, bias=False)
        self.space = ParameterSpace(model, ["weight"])
        self.space.values.zero_()
        self.method = make(self.space, MethodContext(clients=population))
        self.server, self.group = server_for(self.method), alone()
        self.client = PullTo(model, self.space)
        self.messages = Messages(WireLedger(self.space, population, WireSettings()))
        self.kept = KeptStates(self.method.kept(), np.zeros(population, np.int64), self.group, torch.device("cpu"))
        places, samples = np.arange(2), np.array(weights, dtype=np.int64)
        self.cohort = Cohort(places, places, samples, samples, dropped=0, late=0, surplus=0)

    def play(self, number):
        """A round; returns what each client sends as its weight."""
        plan = self.method.plan(number, self.server.values)
        received = {sent.name: self.messages.broadcast(sent) for sent in plan.broadcasts}
        total, weights = CohortSum(self.space, self.cohort, plan, self.group), []
        for place, target in enumerate(self.TARGETS):
            state = self.kept.recall(place, plan.values)
            batch = (torch.ones(1, 1), torch.tensor([target]))
            more = iter([batch] * (2 * plan.work.extra_epochs))
            client = LocalClient(place, received, state.own)
            report = self.client.train(plan, iter([batch] * 2), 2, 0.5, client, state, more)
            weights.append(report.values.item())
            assert total.add(place, report)
            if self.method.kept():
                self.kept.keep(place, state)
        result = total.reduce(False)
        self.kept.settle()
        self.server.update(plan, result.values, total.collect(result.weight), result.trained)
        return weights

    @property
    def weight(self):
        return self.server.values.item()

    def keeps(self, name):
        """What both clients keep under this name."""
        return [self.kept.recall(place, self.server.values).own[name].item() for place in range(2)]

    def goes_on_from(self, other):
        """Takes over what a checkpoint holds of the other one."""
        self.server.set_state(other.server.values, self.space.mask)
        self.method.restore(other.method.state())
        self.kept.restore(other.kept.state())
