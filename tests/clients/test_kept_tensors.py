"""What a method keeps with its clients: three numbers from 0, and two that start as the first two of the state."""

import numpy as np
import pytest
import torch
from thread_group import on_ranks
from tiny import alone, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.kept_state import KeptStates, KeptTensor
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.methods.fedavg import FedAvg

OWN = (KeptTensor("control", 3), KeptTensor("start", 2, lambda values: values[:2]))
VALUES = torch.arange(12.0)


def states(kept=OWN, owner=(0, 0), group=None):
    return KeptStates(kept, np.array(owner), group or alone(), torch.device("cpu"))


def numbers(keepsake):
    return {name: tensor.tolist() for name, tensor in keepsake.own.items()}


def test_what_a_client_starts_from_by_hand():
    first = states().recall(1, VALUES + 5)
    assert numbers(first) == {"control": [0, 0, 0], "start": [5, 6]}
    assert (first.velocity, first.statistics) == (None, None)


def test_a_clients_numbers_are_its_own_and_stay_once_the_round_counts():
    kept, values = states(), VALUES.clone()
    state = kept.recall(1, values)
    state.own["control"][1] = 7.0
    state.own["start"].mul_(10).add_(1)
    assert values.equal(VALUES)  # the start was a copy
    assert numbers(kept.recall(1, values))["control"] == [0, 0, 0]
    kept.keep(1, state)
    assert numbers(kept.recall(1, values))["control"] == [0, 0, 0]
    kept.forget()
    kept.settle()
    assert numbers(kept.recall(1, values))["control"] == [0, 0, 0]  # the round did not count
    kept.keep(1, state)
    kept.settle()
    state.own["control"].zero_()
    # Whatever the global state has become meanwhile.
    assert numbers(kept.recall(1, values + 100)) == {"control": [0, 7, 0], "start": [1, 11]}
    assert numbers(kept.recall(0, values + 100)) == {"control": [0, 0, 0], "start": [100, 101]}
    kept.recall(1, values).own["control"].zero_()
    assert numbers(kept.recall(1, values))["control"] == [0, 7, 0]  # what is recalled is a copy


def test_they_stay_together_with_momentum_and_statistics():
    kept = states(
        (KeptTensor("sgd momentum", 2), OWN[0], KeptTensor("running statistics", 1, lambda values: values[-1:]), OWN[1])
    )
    state = kept.recall(0, VALUES)
    assert (state.velocity.tolist(), state.statistics.tolist()) == ([0, 0], [11])
    assert numbers(state) == {"control": [0, 0, 0], "start": [0, 1]}
    for part, value in ((state.velocity, 1.0), (state.own["control"], 2.0), (state.statistics, 3.0)):
        part.fill_(value)
    kept.keep(0, state)
    kept.settle()
    again = kept.recall(0, VALUES)
    assert (again.velocity.tolist(), again.statistics.tolist()) == ([1, 1], [3])
    assert numbers(again) == {"control": [2, 2, 2], "start": [0, 1]}
    assert kept.state()["rows"][0].tolist() == [1, 1, 2, 2, 2, 3, 0, 1]


def test_a_checkpoint_has_the_clients_of_all_ranks_and_goes_on_with_another_number():
    owner = (0, 1, 1, 0)

    def work(group):
        kept = states(owner=owner, group=group)
        assert kept.mine(torch.tensor([3, 2, 0]).numpy()) == ([0, 2], [1])[group.rank]
        for client in (0, 2):
            if owner[client] == group.rank:
                state = kept.recall(client, VALUES)
                state.own["control"].fill_(client + 1)
                kept.keep(client, state)
        kept.settle()
        return kept.state()

    found = on_ranks(2, work)
    for state in found:
        assert state["seen"].tolist() == [1, 0, 1, 0]
        assert state["rows"].tolist() == [[1, 1, 1, 0, 1], [0] * 5, [3, 3, 3, 0, 1], [0] * 5]
        assert {name: tensor.shape for name, tensor in state.items()} == {
            name: tensor.shape for name, tensor in states(owner=owner).blank().items()
        }
    one = states(owner=(0, 0, 0, 0))
    one.restore(found[0])
    assert [numbers(one.recall(client, VALUES))["control"][0] for client in range(4)] == [1, 0, 3, 0]


class CountsRounds(LocalWork):
    """A client keeps how often it has trained, and what it has been sent."""

    def begin(self, client):
        self.client = client

    def uploads(self, gradient):
        self.client.kept["rounds"] += 1
        self.client.kept["last"][0] = self.client.number
        return {}


@pytest.fixture
def counting(monkeypatch):
    kept = (KeptTensor("rounds", 1), KeptTensor("last", 1, lambda values: values[:1] * 0 - 1))
    monkeypatch.setattr(FedAvg, "kept", lambda method: kept)
    monkeypatch.setattr(FedAvg, "plan", lambda method, round, values: RoundPlan(round, values, CountsRounds()))


@pytest.mark.usefixtures("counting")
def test_in_a_run_each_client_keeps_its_own_from_round_to_round():
    run = started(tiny(method={"name": "fedavg"}), alone())
    trained = torch.zeros(8)
    for number in range(1, 4):
        run.round = number
        assert run.play_round() is not None
        rows = run.local.kept.state()
        trained += (rows["rows"][:, 0] > trained).float()
        assert trained.sum() == 3 * number
    state = run.parts["clients"].state()
    assert state["seen"].tolist() == (trained > 0).int().tolist()
    assert state["rows"][:, 0].tolist() == trained.tolist()
    assert trained.max() > 1  # somebody has trained again
    clients = (trained > 0).nonzero().flatten()
    assert state["rows"][clients, 1].tolist() == clients.tolist()


@pytest.mark.usefixtures("counting")
def test_a_refused_client_keeps_what_it_had():
    run = started(tiny(method={"name": "fedavg"}, optimizer={"lr": 1e3}, federation={"local_epochs": 4}), alone())
    run.round = 1
    metrics = run.play_round()
    assert metrics["clients/refused"] == 3
    assert not run.local.kept.state()["seen"].any()


@pytest.mark.usefixtures("counting")
def test_evaluation_on_own_data_uses_what_the_method_makes_of_what_a_client_keeps(monkeypatch):
    asked = []

    def personal(method, values, kept):
        asked.append((kept["rounds"].item(), kept["last"].item()))
        return values

    monkeypatch.setattr(FedAvg, "personal", personal)
    run = started(tiny(method={"name": "fedavg"}, evaluation={"per_client": 8, "every": 1}), alone())
    run.round = 1
    run.play_round()
    rows = run.local.kept.state()["rows"]
    assert sorted(asked) == sorted((1.0, float(client)) if rows[client, 0] else (0.0, -1.0) for client in range(8))


@pytest.mark.usefixtures("counting")
def test_too_many_clients_for_a_method_to_keep_something_for_each(monkeypatch):
    monkeypatch.setattr("fedmef_dist.clients.kept_state._MOST_CLIENTS", 7)
    with pytest.raises(UserError, match="8 clients are too many to keep something for each") as error:
        started(tiny(method={"name": "fedavg"}), alone())
    assert error.value.where == "method.name=fedavg"
