import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmef_dist.sums.placement import Imbalance, Placement, TrainingTimes, _place, assign
from fedmef_dist.sums.placement_loop import place


def shares(placement):
    return [placement.slots(rank) for rank in range(placement.world_size)]


def graham(costs, world_size):
    """The rule in its simplest form: one after another to the rank with least work."""
    work = [(0.0, rank) for rank in range(world_size)]
    slots = [[] for _ in range(world_size)]
    for slot in np.argsort(-costs, kind="stable").tolist():
        load, rank = heapq.heappop(work)
        slots[rank].append(slot)
        heapq.heappush(work, (load + float(costs[slot]), rank))
    return slots


def test_longest_job_first_by_hand():
    # 7 -> rank 0; 6 -> rank 1; 5 -> rank 1 has less: 11; 4 -> rank 0: 11; 1 -> rank 0 (a tie goes to the lower rank).
    placement = assign(np.array([4.0, 7, 1, 6, 5]), 2)
    assert shares(placement) == [[1, 0, 2], [3, 4]]
    assert placement.loads(np.array([4.0, 7, 1, 6, 5])).tolist() == [12, 11]
    assert placement.counts().tolist() == [3, 2]


COSTS = st.lists(st.one_of(st.floats(0, 1e6), st.integers(0, 5)), max_size=60)


@given(COSTS, st.integers(1, 12))
def test_both_loops_place_as_the_simplest_one_does(costs, world):
    costs = np.array(costs, np.float64)
    wanted, order, equal = graham(costs, world), np.argsort(-costs, kind="stable"), np.ones(world)
    assert shares(assign(costs, world)) == wanted
    assert shares(Placement(world, place(costs, order, equal), order)) == wanted


@given(COSTS, st.lists(st.sampled_from([0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=12))
def test_a_client_goes_to_the_rank_that_would_finish_it_first(costs, slowness):
    costs, slowness = np.array(costs, np.float64), np.array(slowness)
    order = np.argsort(-costs, kind="stable")
    ranks, loads = _place(costs, order, slowness), np.zeros(len(slowness))
    assert np.array_equal(place(costs, order, slowness), ranks)
    for slot in order:
        finish = loads + slowness * costs[slot]
        assert ranks[slot] == np.argmin(finish)
        loads[ranks[slot]] = finish[ranks[slot]]


def test_many_clients_take_the_compiled_loop_to_the_same_places():
    costs = np.random.default_rng(0).lognormal(3, 1, 4096).round()
    assert shares(assign(costs, 500)) == graham(costs, 500)


def test_costs_are_samples_until_a_line_is_learned():
    model = TrainingTimes()
    assert model.predict(np.array([10, 20])).tolist() == [10, 20]
    model.observe(np.array([10, 30]), np.array([1.5, 3.5]))
    assert np.allclose(model.predict(np.array([10, 20, 0])), [1.5, 2.5, 0.5])


def test_equal_clients_teach_nothing_wrong():
    model = TrainingTimes()
    model.observe(np.array([60, 60, 60]), np.array([0.1, 0.2, 0.3]))
    assert model.predict(np.array([60, 30])) == pytest.approx([0.2, 0.1])  # no line, but seconds


def test_a_round_with_fewer_clients_than_ranks_slows_nobody_down():
    # Equal clients on equal ranks, every fourth round with two of them: idle ranks must not count as slow behind it.
    model, draw = TrainingTimes(), np.random.default_rng(0)
    for number in range(13):
        samples = np.full(12 if number % 4 else 2, 100)
        placement = model.place(samples, 4)
        if len(samples) == 12:
            assert placement.counts().tolist() == [3, 3, 3, 3]
        model.observe(samples, draw.uniform(0.495, 0.505, len(samples)), placement)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.floats(1.2, 3.0))
def test_a_slowed_rank_is_learned_within_five_rounds(seed, slow):
    """One of three ranks is slowed down by a busy neighbour; clients take 5 % more or less than their samples say."""
    draw, model, slowness = np.random.default_rng(seed), TrainingTimes(), np.array([1.0, slow, 1.0])
    for number in range(6):
        samples = draw.integers(20, 40, 60)
        placement = model.place(samples, 3)
        own = 0.05 + 0.01 * samples
        if number == 5:
            busy = placement.loads(own * slowness[placement.ranks])
            assert (busy.max() - busy.mean()) / busy.max() < 0.05
        seconds = own * slowness[placement.ranks] * draw.uniform(0.95, 1.05, 60)
        model.observe(samples, seconds, placement)
    assert model.slowness == pytest.approx(slowness, rel=0.05)
    assert model.predict(np.array([30])) == pytest.approx(0.35, rel=0.1)  # of a rank of speed 1


def test_a_rank_without_clients_keeps_the_speed_that_is_known():
    model = TrainingTimes()
    model.observe(np.array([10, 20]), np.array([1.0, 4.0]), Placement(2, np.array([0, 1]), np.arange(2)))
    before = model.slowness.copy()
    assert before[1] / before[0] == pytest.approx(2.0)
    model.observe(np.array([10]), np.array([1.0]), Placement(2, np.array([0]), np.arange(1)))
    assert model.slowness[1] > model.slowness[0]


def test_the_imbalance_and_its_bound_by_hand():
    # 12 s of work on two ranks: at best 6 each, or 8 where one client takes 8.
    assert Imbalance.of(np.array([9.0, 3.0]), np.array([5.0, 4.0, 3.0])) == Imbalance(1.5, 1.0)
    found = Imbalance.of(np.array([8.0, 4.0]), np.array([8.0, 2.0, 2.0]))
    assert (found.slowest, found.bound) == pytest.approx((8 / 6, 8 / 6))
    assert Imbalance.of(np.zeros(2), np.array([])) == Imbalance(0.0, 1.0)
