import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.groups import RunGroup, Spread, group_runs
from fedmef_dist.report.runs import Run, read_run
from fedmef_dist.report.targets import AccuracyTarget, reached, target_of


def group(*best):
    return RunGroup("a", [Run(None, {}, [], {"eval/accuracy_best": accuracy}) for accuracy in best])


@pytest.mark.parametrize(("best", "target"), [(0.8, 0.76), (0.9, 0.85), (0.7869, 0.74), (0.0, 0.0)])
def test_the_default_is_95_per_cent_of_the_best_rounded_down(best, target):
    # 0.95 * 80 % = 76 %; 0.95 * 90 % = 85.5 %; 0.95 * 78.69 % = 74.76 %.
    assert target_of([group(best)], None) == AccuracyTarget(target, chosen=True)


def test_the_best_group_is_the_one_with_the_best_mean():
    assert target_of([group(0.2, 0.99), group(0.8, 0.8), group()], None) == AccuracyTarget(0.76, chosen=True)
    # As floats these average a little less than 0.4.
    assert target_of([group(0.7, 0.35, 0.15)], None) == AccuracyTarget(0.38, chosen=True)
    assert target_of([group()], None) is None


@given(st.floats(min_value=0, max_value=1))
def test_the_default_is_within_reach(best):
    assert best * 0.95 - 0.01 - 1e-6 <= target_of([group(best)], None).accuracy <= best * 0.95 + 1e-6


@pytest.mark.parametrize("accuracy", [-0.01, 1.01, 75, float("nan")])
def test_a_target_that_is_no_share_is_the_users_error(accuracy):
    with pytest.raises(UserError, match="--target"):
        target_of([group(0.5)], accuracy)


@pytest.mark.parametrize("accuracy", [0.0, 0.75, 1.0])
def test_a_share_is_taken_as_it_is(accuracy):
    assert target_of([group(0.5)], accuracy) == AccuracyTarget(accuracy, chosen=False)


def test_the_first_test_with_the_accuracy_counts_and_later_ones_do_not(make_run):
    (one,) = group_runs([read_run(make_run("a", accuracies=(0.5, 0.8, 0.6, 0.9), wire=8e6))])
    found = reached(one, AccuracyTarget(0.8, chosen=False))  # round 4 of 8
    assert (found.seeds, found.rounds, found.bytes) == (1, Spread(4.0, None), Spread(4e6, None))
    assert found.flops == Spread(2e12, None)
    # Round 1 has no test, so not even an accuracy of 0 is known before round 2.
    assert reached(one, AccuracyTarget(0.0, chosen=False)).rounds.mean == 2
    assert reached(one, AccuracyTarget(0.95, chosen=False)).rounds == Spread(None, None)
