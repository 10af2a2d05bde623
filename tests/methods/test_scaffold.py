"""Two clients that pull one weight w to 4 and -2, two steps of rate 1/2 a round, worked out by hand.

Round 1, from w = 0 with c = c_1 = c_2 = 0: 0, 2, 3 and 0, -1, -3/2. The rates add up to 1, so c_1 becomes 0 - 0 + (0 -
3) / 1 = -3 and c_2 = 3/2; the average is 3/4, c = (-3 + 3/2) / 2 = -3/4.

Round 2, from w = 3/4: the corrections c - c_k are 9/4 and -9/4, so the gradients w - 7/4 and w - 1/4: 3/4, 5/4, 3/2 and
3/4, 1/2, 3/8. The changes of c_k are 3/4 - 3/2 + 3/4 = 0 and 3/4 - 3/8 + 3/4 = 9/8; the average is 15/16, c becomes
-3/4 + 9/16 = -3/16, which is the mean of c_1 = -3 and c_2 = 21/8.
"""

import pytest
import torch
from made_methods import Pair
from tiny import alone, started, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.scaffold import Scaffold, ScaffoldSettings
from fedmef_dist.runs.snapshot import take


def make(space, context):
    return Scaffold(ScaffoldSettings(), space, context)


def test_two_rounds_by_hand():
    pair = Pair(make)
    assert pair.play(1) == [3, -1.5]
    assert (pair.weight, pair.method.control.item(), pair.keeps("control")) == (0.75, -0.75, [-3, 1.5])
    assert pair.play(2) == [1.5, 0.375]
    assert (pair.weight, pair.method.control.item(), pair.keeps("control")) == (0.9375, -0.1875, [-3, 2.625])


def test_c_moves_by_the_share_of_the_population_that_counts():
    pair = Pair(make, population=8)  # -3/4 times 2 / 8
    pair.play(1)
    assert pair.method.control.item() == -0.1875


def test_changes_weigh_as_states_do():
    pair = Pair(make, weights=(3, 1))  # (3 * 3 - 3/2) / 4 and (3 * -3 + 3/2) / 4
    pair.play(1)
    assert (pair.weight, pair.method.control.item()) == (1.875, -1.875)


def test_what_is_remembered_comes_back():
    pair, other = Pair(make), Pair(make)
    pair.play(1)
    assert pair.method.state()["control"].tolist() == [-0.75]
    other.goes_on_from(pair)
    assert other.play(2) == pair.play(2) == [1.5, 0.375]
    assert other.weight == pair.weight
    assert torch.equal(other.method.state()["control"], pair.method.state()["control"])


def test_momentum_is_refused():
    with pytest.raises(UserError) as caught:
        make(Pair(make).space, MethodContext(momentum=0.9, plain_sgd=False))
    assert str(caught.value).split("\n") == [
        "control variates need plain SGD",
        "where: optimizer.momentum",
        "mend: set it to 0",
    ]
    with pytest.raises(
        UserError, match=r"control variates need plain SGD\nwhere: optimizer\.name\nmend: set it to sgd"
    ):
        started(tiny(method={"name": "scaffold"}, optimizer={"name": "adam"}), alone())
    with pytest.raises(UserError, match="control variates need plain SGD"):
        started(tiny(method={"name": "scaffold"}, optimizer={"momentum": 0.5}), alone())


def test_in_a_run_c_is_the_mean_of_all_clients_and_is_paid_for():
    config = {"federation": {"clients": 4, "clients_per_round": 4, "weighting": "uniform"}}
    run = started(tiny(method={"name": "scaffold"}, **config), alone())
    plain = started(tiny(method={"name": "fedavg"}, **config), alone())
    for run.round in (1, 2, 3):
        metrics = run.play_round()
    rows = take(3, run.parts, {}).tensors["clients/rows"]
    torch.testing.assert_close(run.method.control, rows.mean(0), rtol=0, atol=1e-6)
    assert rows.abs().min(dim=0).values.any()
    beside = 4 * 4 * run.space.n_parameters  # four bytes a parameter and client, each way
    plain.round = 1
    costs = plain.play_round()
    assert metrics["wire/up_bytes"] - costs["wire/up_bytes"] == beside
    assert metrics["wire/down_bytes"] - costs["wire/down_bytes"] == beside
