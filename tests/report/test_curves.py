import numpy as np
import pytest

from fedmef_dist.report.curves import CURVES, accuracy_line, draw_curves, save_around_adjustments, save_curves
from fedmef_dist.report.groups import RunGroup, group_runs
from fedmef_dist.report.runs import Run, read_run

ROUNDS, WIRE, *_ = CURVES
MEASURED = ["accuracy_rounds.png", "accuracy_wire.png", "accuracy_flops.png"]


def groups_of(*paths):
    return group_runs([read_run(path) for path in paths])


def lines_of(groups, curve):
    return [(number, group.label, accuracy_line(group, curve)) for number, group in enumerate(groups)]


def test_a_line_is_the_mean_over_seeds_with_its_deviation(make_run):
    (group,) = groups_of(
        make_run("a0", seed=0, accuracies=(0.5, 0.9), wire=2e6), make_run("a1", seed=1, accuracies=(0.7, 0.9), wire=4e6)
    )
    line = accuracy_line(group, WIRE)
    np.testing.assert_allclose(line.x, [1.5, 3.0])  # MB, mean of 1 and 2, 2 and 4
    np.testing.assert_allclose(line.y, [60, 90])
    np.testing.assert_allclose(line.deviation, [10 * np.sqrt(2), 0], atol=1e-9)


def test_seeds_meet_at_the_rounds_that_all_of_them_evaluated(make_run):
    (group,) = groups_of(make_run("a0", seed=0), make_run("a1", seed=1))
    run = group.runs[1]
    run.metrics[1].pop("eval/accuracy")
    np.testing.assert_array_equal(accuracy_line(group, ROUNDS).x, [4])
    run.metrics[3].pop("eval/accuracy")
    assert accuracy_line(group, ROUNDS) is None


def test_a_line_follows_the_rounds_and_a_single_seed_has_no_deviation():
    # As a set, 5, 8 and 11 come as 8, 11 and 5.
    metrics = [{"round": number, "eval/accuracy": number / 100} for number in (5, 8, 11)]
    line = accuracy_line(RunGroup("a", [Run(None, {}, metrics, {})]), ROUNDS)
    np.testing.assert_array_equal(line.x, [5, 8, 11])
    np.testing.assert_allclose(line.y, [5, 8, 11])
    assert line.deviation is None


def test_runs_far_apart_get_a_logarithmic_axis(make_run):
    groups = groups_of(make_run("a", wire=1e6), make_run("b", "fedavg", wire=5e7))
    rounds, wire = (draw_curves(lines_of(groups, curve), curve).axes[0] for curve in (ROUNDS, WIRE))
    assert (rounds.get_xscale(), rounds.get_xlabel()) == ("linear", "Round")
    assert (wire.get_xscale(), wire.get_xlabel()) == ("log", "Bytes on the wire (MB), logarithmic")


def test_a_logarithmic_axis_has_no_powers_of_ten(make_run):
    groups = groups_of(make_run("a", wire=1e5), make_run("b", "fedavg", wire=5e6))
    figure = draw_curves(lines_of(groups, WIRE), WIRE)
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    texts = [label.get_text() for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())]
    assert "0.1" in texts
    assert not [text for text in texts if "10^" in text or "times" in text]


def test_a_single_test_has_no_curve(make_run, tmp_path):
    once = groups_of(make_run("once", accuracies=(0.5,)))
    assert save_curves(once, tmp_path) == []
    both = groups_of(make_run("once again", accuracies=(0.5,)), make_run("twice", "fedavg"))
    assert [file.name for file in save_curves(both, tmp_path)] == MEASURED


def test_axes_name_their_units_and_the_legend_the_groups(make_run):
    groups = groups_of(*(make_run(name, name) for name in ("fedavg", "fedmef", "static")))
    axes = draw_curves(lines_of(groups, WIRE), WIRE).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fedavg", "fedmef", "static"]
    assert axes.get_xlabel().endswith("(MB)")
    assert axes.get_ylabel().endswith("(%)")


def test_only_what_was_measured_is_drawn_and_looks_stay_with_the_group(make_run, tmp_path):
    groups = groups_of(make_run("a", "fedavg"), make_run("b", "fedmef"))
    assert [file.name for file in save_curves(groups, tmp_path)] == MEASURED
    for metrics in groups[0].runs[0].metrics:
        del metrics["flops/total"]
    assert "accuracy_flops.png" in [file.name for file in save_curves(groups, tmp_path)]
    for metrics in groups[1].runs[0].metrics:
        del metrics["flops/total"]
    assert "accuracy_flops.png" not in [file.name for file in save_curves(groups, tmp_path)]


@pytest.mark.parametrize("seeds", [1, 2])
def test_accuracy_around_adjustments_is_drawn_where_runs_have_it(make_run, tmp_path, seeds):
    steps = ("before_extrusion", "after_extrusion", "after_prune", "after_grow")
    adjusted = {2: {f"adjust/accuracy_{step}": 0.5 for step in steps}}
    paths = [make_run(f"a{seed}", seed=seed, logged=adjusted) for seed in range(seeds)]
    (file,) = save_around_adjustments(groups_of(*paths, make_run("b", "fedavg")), tmp_path)
    assert file.name == "around_adjustment.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    assert save_around_adjustments(groups_of(make_run("c")), tmp_path) == []
