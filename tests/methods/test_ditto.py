"""Two clients that pull one weight w to 4 and -2, two steps of rate 1/2 a round, lambda = 1/2, worked out by hand.

Round 1, from w = v_1 = v_2 = 0: FedAvg has 0, 2, 3 and 0, -1, -3/2, average 3/4. A personal step's gradient is v - t +
(v - 0) / 2: 0, 2, 5/2 and 0, -1, -5/4.

Round 2, from w = 3/4: FedAvg has 3/4, 19/8, 51/16 and 3/4, -5/8, -21/16, average 15/16. A personal step's gradient is v
- t + (v - 3/4) / 2: 5/2, 45/16, 185/64 and -5/4, -9/8, -35/32.
"""

import pytest
import torch
from made_methods import Pair
from tiny import alone, started, tiny

from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.evaluation.test_set import add_up
from fedmef_dist.methods.ditto import Ditto, DittoSettings
from fedmef_dist.methods.fedavg import FedAvg, FedAvgSettings


def make(space, context, **settings):
    return Ditto(DittoSettings(**{"ditto_lambda": 0.5, **settings}), space, context)


def test_two_rounds_by_hand():
    pair = Pair(make)
    assert pair.keeps("personal") == [0, 0]
    assert pair.play(1) == [3, -1.5]
    assert (pair.weight, pair.keeps("personal")) == (0.75, [2.5, -1.25])
    assert pair.play(2) == [51 / 16, -21 / 16]
    assert (pair.weight, pair.keeps("personal")) == (0.9375, [185 / 64, -35 / 32])


def test_the_global_model_is_fedavgs():
    pair, plain = Pair(make), Pair(lambda space, context: FedAvg(FedAvgSettings(), space, context))
    for number in (1, 2, 3):
        assert pair.play(number) == plain.play(number)
        assert pair.weight == plain.weight


def test_without_a_pull_clients_train_alone_for_as_many_passes_as_are_asked_for():
    pair = Pair(lambda space, context: make(space, context, ditto_lambda=0.0, personal_epochs=2))
    pair.play(1)
    assert pair.keeps("personal") == [4 * 15 / 16, -2 * 15 / 16]  # four times half of the way that is left


def test_a_client_that_comes_late_starts_from_the_global_model():
    pair = Pair(make, population=3)
    pair.play(1)
    assert pair.kept.recall(2, pair.server.values).own["personal"].tolist() == [0.75]


def test_a_client_uses_its_own_model():
    pair = Pair(make)
    own = torch.tensor([2.5])
    assert pair.method.personal(torch.tensor([0.75]), {"personal": own}) is own


def test_what_is_kept_comes_back():
    pair, other = Pair(make), Pair(make)
    pair.play(1)
    assert pair.method.state() == {}
    other.goes_on_from(pair)
    assert other.play(2) == pair.play(2)
    assert other.keeps("personal") == pair.keeps("personal") == [185 / 64, -35 / 32]
    with pytest.raises(ValueError, match="Ditto remembers nothing"):
        other.method.restore({"personal": torch.zeros(1)})


def test_each_client_is_tested_with_its_own_model():
    changes = {"optimizer": {"lr": 0.3}, "evaluation": {"per_client": 8}, "federation": {"local_epochs": 2}}
    method = {"name": "ditto", "ditto_lambda": 0.0, "personal_epochs": 8}
    run = started(tiny(method=method, data={"partition": {"scheme": "dirichlet", "alpha": 0.3}}, **changes), alone())
    for run.round in (1, 2):
        run.play_round()

    def accuracy(client, values):
        data = run.client_evaluation.local_data(client)
        run.space.load(values)
        batches = evaluation_batches(data, run.dataset, batch_size=50, rank=0, world_size=1, device="cpu")
        return add_up(run.model, batches)[1] / data.predictions

    values, kept = run.server.values, run.kept.state()
    own = [kept["rows"][client] if kept["seen"][client] else values for client in range(8)]
    assert 0 < int(kept["seen"].sum()) < 8
    run.round = 6  # the last one evaluates
    metrics = run.evaluate_if_due()
    assert metrics["eval/client_accuracy_mean"] == pytest.approx(
        sum(accuracy(client, values) for client, values in enumerate(own)) / 8
    )
    shared = sum(accuracy(client, values) for client in range(8)) / 8
    assert metrics["eval/client_accuracy_mean"] > shared + 0.05
