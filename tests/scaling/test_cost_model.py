import numpy as np
import pytest

from fedmef_dist.cluster.collective_costs import Link
from fedmef_dist.scaling.cost_model import PARTS, CostModel, Work, latest

SAMPLES = np.array([10.0, 20.0, 30.0])
IDLE = Work(reduce_bytes=0.0, evaluated=0.0, adjusted=0.0)


def parts(model, ranks, local=None, work=IDLE, samples=SAMPLES):
    found = model.parts(samples, model.network(ranks, local or ranks), work)
    assert tuple(found) == PARTS
    return {name: seconds for name, seconds in found.items() if seconds}


@pytest.mark.parametrize(
    ("costs", "ranks", "expected"),
    [
        ({"sample": 1.0}, 1, {"training": 60.0}),
        ({"sample": 1.0}, 2, {"training": 30.0}),  # 30 | 20 + 10
        ({"sample": 1.0}, 3, {"training": 20.0, "slowest client": 10.0}),
        ({"sample": 1.0, "client": 5.0}, 2, {"training": 37.5, "placement": 2.5}),  # 35 | 25 + 15
        ({"sample": 1.0, "neighbour": 0.5}, 2, {"training": 45.0}),
        ({"evaluate": 12.0}, 4, {"evaluation": 3.0}),
        ({"rest": 7.0, "server": 2.0}, 4, {"server": 2.0, "rest": 7.0}),
        ({"rest": 7.0, "evaluate": 8.0, "crowding": 0.1}, 4, {"evaluation": 2.6, "rest": 9.1}),
        ({"draw": 0.5}, 4, {"drawing": 1.5}),
    ],
)
def test_each_cost_by_hand(costs, ranks, expected):
    assert parts(CostModel(**costs), ranks) == pytest.approx(expected)


def test_collectives_by_hand():
    model = CostModel(inside=Link(1.0, 100.0))
    work = Work(reduce_bytes=1000.0, evaluated=0.5, adjusted=0.1)
    # 1000 bytes, a slot of 8 for each of 3 clients and 4 ranks; a ring of 6 steps. Evaluation: 64 bytes. A mask's bits.
    assert parts(model, 4, work=work) == pytest.approx(
        {"latency": 6 + 0.5 * 6 + 0.1 * 2, "bandwidth": 1.5 * 10.56 + 0.5 * 1.5 * 0.64 + 0.1 * 2 * 1000 / 64 / 100}
    )


def test_each_message_of_a_rounds_sums_has_to_wake_a_rank():
    model = CostModel(inside=Link(1.0, 1e9), waking=0.25)
    found = parts(model, 4, work=Work(reduce_bytes=1000.0, evaluated=0.5, adjusted=0.0))
    assert found["latency"] == pytest.approx((6 + 0.5 * 6) * 1.25)
    assert "latency" not in parts(model, 1, work=Work(reduce_bytes=1000.0, evaluated=0.5, adjusted=0.0))


def test_a_million_and_one_clients_are_shared_out_evenly():
    found = parts(CostModel(sample=1e-6), 1000, samples=np.full(1_000_001, 100.0))
    assert found == pytest.approx({"training": 0.1000001})


def test_the_last_of_equal_times_is_their_expected_maximum():
    draws = np.random.default_rng(0).normal(10.0, 0.5, (4000, 64)).max(1)
    assert latest(np.full(64, 10.0), np.full(64, 0.5)) == pytest.approx(draws.mean(), rel=0.005)
    assert latest(np.array([3.0, 10.0]), np.array([0.1, 0.0])) == pytest.approx(10.0)
    assert latest(np.array([3.0, 4.0]), np.zeros(2)) == 4.0


def test_jitter_makes_the_ranks_wait():
    assert parts(CostModel(sample=1.0, jitter=0.1), 1) == {"training": 60.0}
    found = parts(CostModel(sample=1.0, jitter=0.1), 2)
    assert 0 < found["jitter"] < 3.0
