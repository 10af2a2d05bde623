import numpy as np
import pytest

from fedmef_dist.report.plots import _CURVES, _draw_curves, _line, save_plots
from fedmef_dist.report.runs import group_runs, read_run

ROUNDS, WIRE, _ = _CURVES


def groups_of(*paths):
    return group_runs([read_run(path) for path in paths])


def test_a_line_is_the_mean_over_seeds_with_its_deviation(make_run):
    (group,) = groups_of(
        make_run("a0", seed=0, accuracies=(0.5, 0.9), wire=2e6), make_run("a1", seed=1, accuracies=(0.7, 0.9), wire=4e6)
    )
    line = _line(group, WIRE)
    np.testing.assert_allclose(line.x, [1.5, 3.0])  # MB, mean of 1 and 2, 2 and 4
    np.testing.assert_allclose(line.accuracy, [60, 90])
    np.testing.assert_allclose(line.deviation, [10 * np.sqrt(2), 0], atol=1e-9)


def test_seeds_meet_at_the_rounds_that_all_of_them_evaluated(make_run):
    (group,) = groups_of(make_run("a0", seed=0), make_run("a1", seed=1))
    run = group.runs[1]
    run.metrics[1].pop("eval/accuracy")
    np.testing.assert_array_equal(_line(group, ROUNDS).x, [4])
    run.metrics[3].pop("eval/accuracy")
    assert _line(group, ROUNDS) is None


def test_runs_far_apart_get_a_logarithmic_axis(make_run):
    groups = groups_of(make_run("a", wire=1e6), make_run("b", "fedavg", wire=5e7))
    scales = {
        curve.file: _draw_curves([(group.label, _line(group, curve)) for group in groups], curve).axes[0].get_xscale()
        for curve in (ROUNDS, WIRE)
    }
    assert scales == {"accuracy_rounds.png": "linear", "accuracy_wire.png": "log"}


def test_curves_differ_in_more_than_colour_and_name_their_units(make_run):
    groups = groups_of(*(make_run(name, name) for name in ("fedavg", "fedmef", "static")))
    axes = _draw_curves([(group.label, _line(group, WIRE)) for group in groups], WIRE).axes[0]
    assert len({(line.get_linestyle(), line.get_marker()) for line in axes.lines}) == 3
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fedavg", "fedmef", "static"]
    assert axes.get_xlabel().endswith("(MB)")
    assert axes.get_ylabel().endswith("(%)")


def test_files_are_png_and_only_what_was_measured_is_drawn(make_run, tmp_path):
    group = groups_of(make_run("a"))
    files = save_plots(group, tmp_path)
    assert [file.name for file in files] == [
        "accuracy_rounds.png",
        "accuracy_wire.png",
        "accuracy_flops.png",
        "costs.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    for metrics in group[0].runs[0].metrics:
        del metrics["flops/total"]
    assert "accuracy_flops.png" not in [file.name for file in save_plots(group, tmp_path)]


@pytest.mark.parametrize("missing", ["reference/wire_bytes", "memory/activation_bytes"])
def test_a_cost_that_was_not_measured_leaves_its_bar_out(make_run, tmp_path, missing):
    assert save_plots(groups_of(make_run("a", **{missing: None})), tmp_path)[-1].name == "costs.png"
