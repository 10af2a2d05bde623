import csv
import io

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.report import difference_plot
from fedmef_dist.report.compare import compare
from fedmef_dist.report.difference_plot import save_differences
from fedmef_dist.report.difference_tables import difference_tables, differences_as_csv
from fedmef_dist.report.differences import differences_from
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.runs import read_run

FINAL = {"still": {0: 0.50, 1: 0.52, 2: 0.48}, "moved": {0: 0.53, 1: 0.56, 2: 0.50, 5: 0.9}, "other": {1: 0.5, 7: 0.5}}


@pytest.fixture
def make_runs(make_run):
    """Runs of the groups of FINAL with so many tests, the last of the given accuracy."""

    def make(tests=2):
        return [
            make_run(f"{name}-seed{seed}", method=name, seed=seed, accuracies=(*[0.1] * (tests - 1), accuracy))
            for name, seeds in FINAL.items()
            for seed, accuracy in seeds.items()
        ]

    return make


@pytest.fixture
def differences(make_runs):
    return differences_from(group_runs([read_run(path) for path in make_runs()]), "still")


def test_pairs_are_of_one_seed(differences):
    assert list(differences.by_measure) == ["accuracy_last"]
    moved, other = differences.by_measure["accuracy_last"]
    # 3, 4 and 2 points: mean 3, error 1 / sqrt(3), and t with two degrees of freedom is 4.3027.
    assert (moved.label, moved.numbers.pairs) == ("moved", 3)
    assert moved.numbers.mean == pytest.approx(0.03)
    assert moved.numbers.low == pytest.approx(0.03 - 4.3027 * 0.01 / 3**0.5, abs=1e-6)
    assert moved.numbers.effect == pytest.approx(3)
    assert (moved.unmatched, moved.missed) == ([5], [])
    assert (other.numbers.pairs, other.numbers.error) == (1, None)
    assert (other.unmatched, other.missed) == ([7], [0, 2])


def test_the_table_says_pairs_interval_and_who_has_no_partner(differences):
    (table,) = difference_tables(differences)
    assert table.title == "Final accuracy against still"
    assert table.rows == [
        ("moved", "3", "+3.00", "0.58", "+0.52 to +5.48", "+3.00", "higher"),
        ("other", "1", "-2.00", "-", "-", "-", "not settled"),
    ]
    assert "Seeds that still lacks: moved: 5; other: 7." in table.note
    assert "Seeds of still that a row lacks: other: 0, 2." in table.note


def test_late_accuracy_is_the_mean_of_the_last_five_tests(make_runs):
    differences = differences_from(group_runs([read_run(path) for path in make_runs(tests=6)]), "still")
    assert list(differences.by_measure) == ["accuracy_last", "accuracy_late"]
    late = differences.by_measure["accuracy_late"][0].numbers
    assert late.mean == pytest.approx(0.03 / 5)
    # Tests in rounds 2, 4, ..., 12.
    assert "last 5 tests, rounds 4 to 12" in difference_tables(differences)[1].note
    assert "last 5 tests" not in difference_tables(differences)[0].note


def test_rounds_that_differ_are_not_named(make_run):
    runs = [make_run("a", accuracies=(0.1,) * 5), make_run("b", method="fedavg", accuracies=(0.1,) * 6)]
    differences = differences_from(group_runs([read_run(path) for path in runs]), "a")
    assert "last 5 tests of" not in difference_tables(differences)[1].note
    assert "last 5 tests. " in difference_tables(differences)[1].note


def test_csv_holds_plain_numbers(differences):
    moved, other = csv.DictReader(io.StringIO(differences_as_csv(differences)))
    assert (moved["run"], moved["baseline"], moved["measure"], moved["pairs"]) == (
        "moved",
        "still",
        "accuracy_last",
        "3",
    )
    assert float(moved["mean"]) == pytest.approx(0.03)
    assert float(moved["high"]) == pytest.approx(0.03 + 4.3027 * 0.01 / 3**0.5, abs=1e-6)
    assert (moved["verdict"], moved["seeds_without_baseline"], moved["seeds_of_baseline_alone"]) == ("higher", "5", "")
    assert (other["low"], other["effect_size"], other["seeds_of_baseline_alone"]) == ("", "", "0 2")


def test_the_plot_has_a_zero_line_points_and_intervals(differences, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(difference_plot, "save_figure", lambda figure, path: saved.append(figure) or path)
    assert save_differences(differences, tmp_path) == [tmp_path / "differences.png"]
    (axes,) = saved[0].axes
    zero, interval, moved, other = axes.lines
    assert list(zero.get_xdata()) == [0, 0]
    assert list(interval.get_xdata()) == pytest.approx([0.516, 5.484], abs=1e-3)
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in (moved, other)] == [
        (pytest.approx(3), 0),
        (pytest.approx(-2), 1),
    ]
    assert moved.get_markerfacecolor() != other.get_markerfacecolor() == "white"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["moved", "other"]


def test_both_panels_of_the_plot_have_one_scale(make_runs, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(difference_plot, "save_figure", lambda figure, path: saved.append(figure) or path)
    save_differences(differences_from(group_runs([read_run(path) for path in make_runs(tests=5)]), "still"), tmp_path)
    final, late = saved[0].axes
    assert final.get_xlim() == late.get_xlim()
    assert [axes.get_xlabel() for axes in (final, late)] == [
        f"Difference in {which} accuracy (points)" for which in ("final", "late")
    ]


def test_a_group_without_pairs_is_in_the_table_and_not_drawn(make_run, tmp_path):
    runs = [make_run("a"), make_run("b", method="fedavg"), make_run("c", method="static", seed=4)]
    differences = differences_from(group_runs([read_run(path) for path in runs]), "a")
    rows = difference_tables(differences)[0].rows
    assert rows[1] == ("c", "0", "-", "-", "-", "-", "not settled")
    assert save_differences(differences, tmp_path)[0].read_bytes().startswith(b"\x89PNG")


def test_any_group_may_be_the_baseline(make_runs):
    moved = differences_from(group_runs([read_run(path) for path in make_runs()]), "moved")
    still, other = moved.by_measure["accuracy_last"]
    assert (still.label, still.baseline, still.numbers.mean) == ("still", "moved", pytest.approx(-0.03))
    assert (other.label, other.numbers.mean) == ("other", pytest.approx(-0.06))


def test_a_part_of_a_name_is_enough_where_only_one_has_it(make_runs):
    groups = group_runs([read_run(path) for path in make_runs()])
    assert differences_from(groups, "til").against == "still"
    with pytest.raises(UserError, match="2 groups have 'o' in their names") as error:
        differences_from(groups, "o")
    assert "moved; other" in str(error.value)
    with pytest.raises(UserError, match="no group has 'dense' in its name") as error:
        differences_from(groups, "dense")
    assert "still; moved; other" in str(error.value)


def test_a_whole_name_comes_before_a_part_of_another(make_run):
    runs = [make_run("fed"), make_run("fedavg", method="fedavg")]
    assert differences_from(group_runs([read_run(path) for path in runs]), "fed").against == "fed"


def test_what_cannot_be_paired_is_refused(make_run):
    one = read_run(make_run("a"))
    with pytest.raises(UserError, match="no other group"):
        differences_from(group_runs([one]), "a")
    with pytest.raises(UserError, match="no run has a seed in common"):
        differences_from(group_runs([one, read_run(make_run("b", method="fedavg", seed=3))]), "a")
    with pytest.raises(UserError, match="seed 0 twice") as caught:
        differences_from(group_runs([one, read_run(make_run("a2")), read_run(make_run("c", method="fedavg"))]), "c")
    assert caught.value.where == "the pairs by seed"  # which --by alone asks for too
    keyless = read_run(make_run("d", method="static"))
    keyless.config.pop("seed")
    with pytest.raises(UserError, match="has no seed"):
        differences_from(group_runs([one, keyless]), "a")


def test_compare_writes_and_prints_the_differences(make_runs, tmp_path, capsys):
    compare(make_runs(), tmp_path / "out", baseline="still")
    printed = capsys.readouterr().out
    written = (tmp_path / "out" / "compare.md").read_text()
    for text in (printed, written):
        assert "Final accuracy against still" in text
        assert "+0.52 to +5.48" in text
    files = printed.splitlines()
    assert {str(tmp_path / "out" / name) for name in ("differences.csv", "differences.png")} <= set(files)
    assert "![Differences, paired by seed, with 95 % intervals](differences.png)" in written
    assert (tmp_path / "out" / "differences.csv").read_text().count("\n") == 3
    assert (tmp_path / "out" / "differences.png").exists()


def test_what_an_earlier_report_wrote_and_this_one_does_not_goes(make_runs, tmp_path):
    runs, out = make_runs(), tmp_path / "out"
    compare(runs, out, baseline="still")
    (out / "along.png").write_text("of the user, not of that report")
    compare(runs, out)
    found = {file.name for file in out.iterdir()}
    assert not {"differences.csv", "differences.png"} & found
    assert {"along.png", "memory.png", "compare.csv", "compare.md", "report.html"} <= found
