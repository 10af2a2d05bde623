"""What a client trains on behind its own round, and what the simulated device pays for it."""

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import alone, started, tiny

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.methods.fedavg import FedAvg
from fedmef_dist.simulation import local_training
from fedmef_dist.wire.encodings import Signs
from fedmef_dist.wire.ranges import parameters, prunable
from fedmef_dist.wire.traffic import Broadcast, Upload, whole

# Batches of four: each client has some tens of samples, so several batches and a smaller one.
FEDERATION = {"batch_size": 4, "local_epochs": 2}


class TrainsMore(LocalWork):
    """Notes what it is called for; ruins the space in its extra passes."""

    def __init__(self, space, gradient_batches, extra_epochs):
        self.space, self.gradient_batches, self.extra_epochs = space, gradient_batches, extra_epochs
        self.calls = []

    def begin(self, client):
        self.calls.append(("begin", client.number))

    def uploads(self, gradient):
        self.calls.append(("uploads", gradient is not None))
        return {"state": Upload(None, self.space.values[: self.space.n_parameters])}

    def train_more(self, batches, rate, loss):
        first = next(batches)
        assert loss(first).shape == ()
        self.calls.append(("more", [first, *batches], rate))
        self.space.values.fill_(7.0)


def run_of(monkeypatch, gradient_batches=0, extra_epochs=0, **federation):
    """A run before its first round, and what its clients do in addition to SGD."""
    run = started(tiny(method={"name": "fedavg"}, federation=FEDERATION | federation), alone())
    work = TrainsMore(run.space, gradient_batches, extra_epochs)
    collections = (whole("state", parameters(run.space)),)
    monkeypatch.setattr(
        FedAvg, "plan", lambda method, round, values: RoundPlan(round, values, work, collections=collections)
    )
    run.round = 1
    return run, work


def test_the_log_names_few_of_many_clients(monkeypatch, caplog):
    run, _ = run_of(monkeypatch)
    monkeypatch.setattr(local_training, "_NAMED", 2)
    cohort = draw_cohort(run.population, run.config.federation, run.config.seed, 1)
    assert len(cohort.clients) > 2
    with caplog.at_level(logging.INFO):
        run.play_round()
    (line,) = [record.getMessage() for record in caplog.records if "trains" in record.getMessage()]
    assert re.fullmatch(rf"round 1: trains {len(cohort.clients)} clients: \d+, \d+, \.\.\.", line)


def pixels(batches):
    """The samples of all batches, in an order that depends on nothing but what they are."""
    return sorted(torch.cat([inputs.flatten(1) for inputs, _ in batches]).tolist())


@pytest.mark.parametrize("gradient_batches", [0, 1, 1000])
@pytest.mark.parametrize("extra_epochs", [1, 2])
def test_a_client_trains_more_on_whole_passes_once_its_update_is_made(monkeypatch, gradient_batches, extra_epochs):
    run, work = run_of(monkeypatch, gradient_batches, extra_epochs)
    run.play_round()
    cohort = draw_cohort(run.population, run.config.federation, run.config.seed, 1)
    assert len(work.calls) == 3 * 3
    for place in range(3):
        begun, uploaded, (name, batches, rate) = work.calls[3 * place : 3 * place + 3]
        assert (begun[0], uploaded, name) == ("begin", ("uploads", gradient_batches > 0), "more")
        assert rate == run.config.optimizer.rate(1, 6)
        (slot,) = (cohort.clients == begun[1]).nonzero()[0]
        samples = int(cohort.samples[slot])
        assert [len(labels) for _, labels in batches] == (
            [4] * (samples // 4) + [samples % 4] * (samples % 4 > 0)
        ) * extra_epochs
        own = list(run.own_batches(begun[1], 1))
        half = len(batches) // extra_epochs
        assert pixels(batches[:half]) == pixels(own)
        assert pixels(batches[-half:]) == pixels(own)


@pytest.mark.parametrize("gradient_batches", [0, 1])
def test_what_it_trains_more_changes_neither_its_update_nor_what_it_sends(monkeypatch, gradient_batches):
    states, sums = [], []
    for extra_epochs in (0, 1):
        run, _ = run_of(monkeypatch, gradient_batches, extra_epochs)
        run.method.observe = lambda plan, values, found: sums.append(found["state"].total.tolist())
        run.play_round()
        states.append(run.server.digest())
    assert states[0] == states[1]
    assert sums[0] == sums[1]


class Listens(LocalWork):
    """Notes what it has received."""

    def __init__(self):
        self.received = []

    def begin(self, client):
        self.received.append(client.received)


def test_every_client_gets_what_was_decoded_of_the_broadcasts(monkeypatch):
    work = Listens()
    run = started(tiny(method={"name": "fedavg"}, wire={"uplink_values": "int8"}), alone())
    control = torch.randn(run.space.n_parameters)
    direction = torch.arange(run.space.n_prunable) % 3 - 1
    sent = (
        Broadcast("control", parameters(run.space), control),
        Broadcast("direction", prunable(run.space), direction, Signs()),
    )
    monkeypatch.setattr(FedAvg, "plan", lambda method, round, values: RoundPlan(round, values, work, broadcasts=sent))
    plain = started(tiny(method={"name": "static", "density": 1}, wire={"uplink_values": "int8"}), alone())
    plain.round = run.round = 1
    without, with_them = plain.play_round(), run.play_round()
    assert len(work.received) == 3
    for received in work.received:
        assert received.keys() == {"control", "direction"}
        assert received["control"].equal(control)
        assert received["direction"].equal(direction.float())
    more = sum(run.accounting.wire.broadcast_bytes(down) for down in sent)
    assert with_them["wire/down_bytes"] - without["wire/down_bytes"] == 3 * more
    assert more > control.nbytes


def test_what_it_trains_more_is_paid_for(monkeypatch):
    flops = {}
    for local, extra in [(1, 0), (2, 0), (1, 1), (3, 0), (1, 2)]:
        run, _ = run_of(monkeypatch, extra_epochs=extra, local_epochs=local)
        flops[local, extra] = run.play_round()["flops/train"]
    # A pass of its own costs what a pass of its round does.
    assert flops[1, 1] == flops[2, 0]
    assert flops[1, 2] == flops[3, 0] == pytest.approx(3 * flops[1, 0])


def test_a_forecast_pays_for_it_too(monkeypatch):
    run, _ = run_of(monkeypatch, extra_epochs=1)
    plan = run.method.plan(1, run.server.values)
    cohort = draw_cohort(run.population, run.config.federation, run.config.seed, 1)
    samples, batches = int(cohort.samples.sum()), int((-(-cohort.samples // 4)).sum())
    counts = [layer.size for layer in run.space.layers]
    expected = run.accounting.flops.round(counts, samples=3 * samples, steps=3 * batches).total
    assert run.accounting.round(cohort, plan, run.space.mask, run.totals)["flops/train"] == expected


def test_large_clients_that_dominate_for_three_rounds_are_said_once(capsys):
    local = started(tiny(), alone()).local

    def play(round, seconds):
        result = SimpleNamespace(rank_seconds=np.array([seconds, 1.0, 1.0]), client_seconds=np.array([seconds, 1, 1]))
        return local.imbalance(round, result)

    assert play(1, 4.0) == {"time/imbalance": 2.0, "time/imbalance_bound": 2.0}
    play(2, 4.0)
    play(3, 1.0)  # not in a row
    for round in (4, 5):
        play(round, 4.0)
    assert capsys.readouterr().err == ""
    for round in (6, 7):
        play(round, 4.0)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("round 6: the largest client alone takes 2.0 times what a rank trains on average")
