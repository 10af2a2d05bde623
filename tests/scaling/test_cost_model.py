import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import measurement

from fedmef_dist.scaling.cost_model import CostModel, _non_negative, fit
from fedmef_dist.scaling.points import Point, Study
from fedmef_dist.scaling.prediction import modelled_seconds, predict

FREE = CostModel(client=0.0, sample=0.0, neighbour=0.0, latency=0.0, byte=0.0, evaluate=0.0, rest=0.0)
SAMPLES = np.array([10.0, 20.0, 30.0])


def model(**costs):
    return CostModel(**{**vars(FREE), **costs})


@pytest.mark.parametrize(
    ("costs", "ranks", "expected"),
    [
        ({"sample": 1.0}, 1, 60.0),
        ({"sample": 1.0}, 2, 30.0),  # 30 | 20 + 10
        ({"sample": 1.0}, 3, 30.0),
        ({"sample": 1.0, "client": 5.0}, 2, 40.0),  # 35 | 25 + 15
        ({"sample": 1.0, "neighbour": 0.5}, 2, 45.0),
        ({"latency": 2.0}, 8, 6.0),
        ({"latency": 2.0, "byte": 1.0}, 1, 0.0),
        ({"byte": 0.001}, 4, 1.5),  # 1000 bytes, 2 * 3 / 4 times
        ({"evaluate": 12.0}, 4, 3.0),
        ({"rest": 7.0}, 4, 7.0),
    ],
)
def test_each_cost_by_hand(costs, ranks, expected):
    assert model(**costs).round_seconds(SAMPLES, ranks, ranks, 1000.0) == pytest.approx(expected)


def test_the_fit_finds_the_costs_that_made_the_measurements():
    truth = model(client=0.5, sample=0.1, neighbour=0.02, latency=0.3, evaluate=4.0, rest=0.25)
    runs = []
    for ranks in (1, 2, 4):
        cohort = (10.0, 20.0, 30.0, 60.0)
        seconds = [truth.client + n * (truth.sample + truth.neighbour * (ranks - 1)) for n in cohort]
        run = measurement(
            ranks, sum(seconds) / ranks, cohort, adjust=0.25, eval=4.0 / ranks, reduce=0.3 * np.log2(ranks)
        )
        runs.append(type(run)(**{**vars(run), "job_seconds": np.tile(seconds, run.rounds)}))
    found = fit(runs)
    assert vars(found) == pytest.approx({**vars(truth), "byte": 0.0}, abs=1e-9)


def test_one_number_of_ranks_is_fitted_without_a_reduction():
    found = fit([measurement(1, 3.0)])
    assert (found.latency, found.byte) == (0.0, 0.0)
    assert found.client + 30 * found.sample / 2 == pytest.approx(1.5)


@given(st.lists(st.tuples(*[st.floats(-10, 10)] * 3), min_size=4, max_size=12))
def test_no_cost_is_negative_and_none_fits_worse_than_zero(rows):
    first, second, values = (np.array(column) for column in zip(*rows, strict=True))
    found = _non_negative([first, second], values)
    assert min(found) >= 0
    residual = np.linalg.norm(found[0] * first + found[1] * second - values)
    assert residual <= np.linalg.norm(values) * (1 + 1e-9) + 1e-9


def test_a_negative_cost_is_left_out_and_the_rest_fitted_again():
    # Free, the first column would get -1 and the second 3; alone the second gets 8 / 5.
    first, second = np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-3])
    assert _non_negative([first, second], 3 * second - first)[0] == 0.0
    assert _non_negative([np.array([1.0, 0.0])], np.array([-1.0, 0.0])) == [0.0]


def test_predictions_double_the_ranks_from_the_most_that_were_measured():
    one, two = measurement(1, 8.0, cohort=(10.0,) * 8), measurement(2, 4.0, cohort=(10.0,) * 8)
    study = Study((Point(1, 50, 8), Point(2, 50, 8)), (), ())
    results = {study.strong[0]: [one], study.strong[1]: [two]}
    predictions = predict(model(sample=0.1), study, results)
    assert [each.ranks for each in predictions] == [4, 8, 16, 32, 64]
    assert [each.strong_seconds for each in predictions] == pytest.approx([2.0, 1.0, 1.0, 1.0, 1.0])  # 8 clients only
    assert [each.strong_efficiency for each in predictions] == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.125])
    assert [each.weak_efficiency for each in predictions] == pytest.approx([1.0] * 5)
    assert modelled_seconds(model(sample=0.1), [two]) == pytest.approx(4.0)
