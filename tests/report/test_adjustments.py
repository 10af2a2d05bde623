import pytest

from fedmef_dist.report.adjustments import STEPS, around_adjustments
from fedmef_dist.report.groups import Spread, group_runs
from fedmef_dist.report.runs import read_run


def adjusted(*accuracies):
    return {f"adjust/accuracy_{step}": accuracy for step, accuracy in zip(STEPS, accuracies, strict=True)}


def test_all_adjustments_of_all_seeds_count_alike(make_run):
    paths = [
        make_run("a0", seed=0, logged={1: adjusted(0.5, 0.25, 0.5, 0.5), 3: adjusted(0.5, 0.5, 0.5, 0.5)}),
        make_run("a1", seed=1, logged={2: adjusted(0.5, 0.75, 0.5, 0.5)}),
    ]
    (group,) = group_runs([read_run(path) for path in paths])
    around = around_adjustments(group)
    assert around.adjustments == 3
    assert around.accuracies[0] == Spread(0.5, 0.0)
    assert around.accuracies[1] == Spread(0.5, 0.25)
    # Changes by 0.25, 0 and -0.25.
    assert around.change == Spread(pytest.approx(0.0), pytest.approx(0.25))


def test_an_adjustment_that_lacks_a_step_does_not_count(make_run):
    half = {"adjust/accuracy_before_extrusion": 0.5, "adjust/accuracy_after_grow": 0.5}
    (group,) = group_runs([read_run(make_run("a", logged={2: half}))])
    assert around_adjustments(group) is None
