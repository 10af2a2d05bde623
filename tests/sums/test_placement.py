import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.sums.placement import TrainingTimes, assign


def test_longest_job_first_by_hand():
    # 7 -> rank 0; 6 -> rank 1; 5 -> rank 1 has less: 11; 4 -> rank 0: 11; 1 -> rank 0 (a tie goes to the lower rank).
    assert assign(np.array([4.0, 7, 1, 6, 5]), 2) == [[1, 0, 2], [3, 4]]


@given(st.lists(st.floats(0, 1e6), max_size=40), st.integers(1, 8))
def test_every_client_is_placed_once(costs, world):
    placed = assign(np.array(costs), world)
    assert len(placed) == world
    assert sorted(slot for slots in placed for slot in slots) == list(range(len(costs)))


def test_costs_are_samples_until_a_line_is_learned():
    model = TrainingTimes()
    assert model.predict(np.array([10, 20])).tolist() == [10, 20]
    model.observe(np.array([10, 30]), np.array([1.5, 3.5]))
    assert np.allclose(model.predict(np.array([10, 20, 0])), [1.5, 2.5, 0.5])


def test_equal_clients_teach_nothing_wrong():
    model = TrainingTimes()
    model.observe(np.array([60, 60, 60]), np.array([0.1, 0.2, 0.3]))
    assert model.predict(np.array([60, 60])).tolist() == [60, 60]
