"""Two clients that pull one weight w to 4 and -2, two steps of rate 1/2 a round, alpha = 1/2, worked out by hand.

Round 1, from w = 0 with g_1 = g_2 = h = 0: the gradients are 3/2 w - 4 and 3/2 w + 2, so 0, 2, 5/2 and 0, -1, -5/4. g_1
becomes -1/2 * 5/2 = -5/4 and g_2 = 5/8. The average is 5/8, h = -1/2 * 5/8 = -5/16, the state 5/8 + 2 * 5/16 = 5/4.

Round 2, from w = 5/4: w - 4 + (w - 5/4) / 2 + 5/4 gives 5/4, 2, 35/16; w + 2 + (w - 5/4) / 2 - 5/8 gives 5/4, -1/16,
-25/64. g_1 becomes -5/4 - 15/32 = -55/32, g_2 = 5/8 + 105/128 = 185/128. The average is 115/128, h = -5/16 + 45/256 =
-35/256, the state 115/128 + 35/128 = 75/64.
"""

import pytest
import torch
from made_methods import Pair
from pydantic import ValidationError
from tiny import alone, started, tiny

from fedmef_dist.methods.feddyn import FedDyn, FedDynSettings


def make(space, context):
    return FedDyn(FedDynSettings(alpha=0.5), space, context)


def test_two_rounds_by_hand():
    pair = Pair(make)
    assert pair.play(1) == [2.5, -1.25]
    assert (pair.weight, pair.method.memory.item(), pair.keeps("gradient")) == (1.25, -5 / 16, [-1.25, 0.625])
    assert pair.play(2) == [35 / 16, -25 / 64]
    assert (pair.weight, pair.method.memory.item()) == (75 / 64, -35 / 256)
    assert pair.keeps("gradient") == [-55 / 32, 185 / 128]


def test_h_falls_by_the_share_of_the_population_that_counts():
    pair = Pair(make, population=8)  # -5/16 times 2 / 8, and 5/8 + 2 * 5/64
    pair.play(1)
    assert (pair.method.memory.item(), pair.weight) == (-5 / 64, 25 / 32)


def test_both_clients_agree_in_the_end_on_the_minimum_of_the_sum():
    pair = Pair(make)
    for number in range(1, 101):
        weights = pair.play(number)
    # The mean of the targets is 1; FedAvg's clients stay at 3/4 of their way to 4 and -2.
    assert [*weights, pair.weight] == pytest.approx([1, 1, 1], abs=1e-4)
    assert pair.keeps("gradient") == pytest.approx([-3, 3], abs=1e-3)  # the gradients w - t there


def test_what_is_remembered_comes_back():
    pair, other = Pair(make), Pair(make)
    pair.play(1)
    assert pair.method.state()["memory"].tolist() == [-5 / 16]
    other.goes_on_from(pair)
    assert other.play(2) == pair.play(2) == [35 / 16, -25 / 64]
    assert other.weight == pair.weight
    assert torch.equal(other.method.state()["memory"], pair.method.state()["memory"])


def test_alpha_must_be_above_0():
    with pytest.raises(ValidationError, match="greater than 0"):
        FedDynSettings(alpha=0.0)


def test_nothing_travels_in_addition_to_the_model():
    costs = []
    for name in ("feddyn", "fedavg"):
        run = started(tiny(method={"name": name}), alone())
        run.round = 1
        metrics = run.play_round()
        costs.append((metrics["wire/up_bytes"], metrics["wire/down_bytes"]))
    assert costs[0] == costs[1]
