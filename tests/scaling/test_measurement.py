import numpy as np
import pytest
from made_runs import measurement

from fedmef_dist.scaling.measurement import Quartiles, efficiency, losses, quartiles, read_measurement, round_seconds
from fedmef_dist.scaling.points import Point


def test_a_run_is_read_without_its_warm_up(run_dir):
    run = read_measurement(run_dir, Point(2, 100, 2), 2)
    assert run.rounds == 2
    assert run.seconds == pytest.approx(21.0)  # two rounds of 10 s and the second between them
    expected = {"train": 10.0, "wait": 2.0, "reduce": 2.0, "adjust": 2.0, "eval": 4.0, "other": 1.0}
    assert run.phases == pytest.approx(expected)
    assert [cohort.tolist() for cohort in run.cohorts] == [[100.0, 150.0], [150.0, 200.0]]
    assert run.samples.tolist() == [100.0, 150.0, 150.0, 200.0]
    assert run.job_seconds == pytest.approx(np.array([6.0, 4.0, 6.0, 4.0]))
    assert run.reduce_bytes == 2500.0
    assert run.outside == pytest.approx(40.0 - 32.0)  # the three rounds lie within 32 s
    assert run.peak_bytes == 101


def test_quartiles():
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(2.0, 3.0, 4.0)


def test_a_round_is_the_runs_time_over_its_rounds():
    assert round_seconds([measurement(1, 2.0), measurement(1, 4.0)]).median == pytest.approx(3.0)


def test_strong_efficiency_compares_repetition_with_repetition():
    base, runs = [measurement(1, 8.0), measurement(1, 16.0)], [measurement(2, 5.0), measurement(2, 10.0)]
    share = efficiency(runs, base)
    assert (share.low, share.high) == pytest.approx((0.8, 0.8))


def test_weak_efficiency_counts_samples():
    base = [measurement(1, 3.0, cohort=(10.0, 20.0))]
    # Twice the ranks train three times the samples in twice the time: 90 / (2 * 6) against 30 / 3.
    runs = [measurement(2, 6.0, cohort=(45.0, 45.0))]
    assert efficiency(runs, base).median == pytest.approx(0.75)


def test_losses_say_where_each_point_of_efficiency_went():
    base = [measurement(1, 8.0, adjust=1.0, eval=1.0)]
    runs = [measurement(2, 4.5, wait=0.5, reduce=0.25, adjust=1.0, eval=0.5)]
    lost = losses(runs, base)
    # Of 2 * 6.75 rank-seconds: training took 9 instead of 8, adjusting 2 instead of 1, evaluating 1 as before.
    expected = {"train": 1.0, "wait": 1.0, "reduce": 0.5, "adjust": 1.0, "eval": 0.0, "other": 0.0}
    assert lost == pytest.approx({name: value / 13.5 for name, value in expected.items()})
    assert sum(lost.values()) == pytest.approx(1 - efficiency(runs, base).median)
