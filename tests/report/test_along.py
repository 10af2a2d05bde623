import csv

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.report import along_plot
from fedmef_dist.report.along import groups_along
from fedmef_dist.report.along_plot import save_along
from fedmef_dist.report.along_tables import along_table
from fedmef_dist.report.compare import compare
from fedmef_dist.report.difference_tables import difference_tables
from fedmef_dist.report.differences import changes_along, differences_along
from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.runs import read_run

# Contestant -> local epochs -> final accuracy of seeds 0, 1 and 2. Ten comes after two.
FINAL = {
    "static": {10: (0.50, 0.52, 0.48), 2: (0.40, 0.40, 0.40)},
    "fedmef": {10: (0.53, 0.56, 0.50), 2: (0.41, 0.42, 0.40), 1: (0.30, 0.30, 0.30)},
}


def run_at(make_run, method, epochs, seed, accuracy, **settings):
    federation = {"local_epochs": epochs} | settings
    name = f"seed-{seed}_local_epochs-{epochs}_name-{method}"
    return make_run(name, method, seed, (0.1, accuracy), settings={"federation": federation})


@pytest.fixture
def paths(make_run):
    return [
        run_at(make_run, method, epochs, seed, accuracy)
        for method, settings in FINAL.items()
        for epochs, accuracies in settings.items()
        for seed, accuracy in enumerate(accuracies)
    ]


@pytest.fixture
def along(paths):
    return groups_along(group_runs([read_run(path) for path in paths]), "local_epochs")


def test_numbers_rise_and_contestants_are_called_without_the_value(along):
    assert (along.key, along.name) == ("federation.local_epochs", "local_epochs")
    assert along.values == ["1", "2", "10"]
    assert {row: list(groups) for row, groups in along.rows.items()} == {
        "static": ["10", "2"],
        "fedmef": ["10", "2", "1"],
    }


def test_the_table_has_a_column_a_value(along):
    table = along_table(along)
    assert table.title == "Final accuracy along local_epochs"
    assert [tuple(row) for row in table.rows] == [
        ("static", "-", "40.00 ± 0.00", "50.00 ± 2.00"),
        ("fedmef", "30.00 ± 0.00", "41.00 ± 1.00", "53.00 ± 3.00"),
    ]


def test_each_is_compared_with_the_baseline_at_the_same_value(along):
    (table,) = difference_tables(differences_along(along, "static"))
    assert table.title == "Final accuracy against static at the same local_epochs"
    # At ten 3, 4 and 2 points; at one there is no baseline.
    assert [tuple(row) for row in table.rows] == [
        ("fedmef, local_epochs 2", "3", "+1.00", "0.58", "-1.48 to +3.48", "+1.00", "not settled"),
        ("fedmef, local_epochs 10", "3", "+3.00", "0.58", "+0.52 to +5.48", "+3.00", "higher"),
    ]


def test_who_lacks_a_value_is_not_compared_there(along):
    (table,) = difference_tables(differences_along(along, "fedmef"))
    assert [row[0] for row in table.rows] == ["static, local_epochs 2", "static, local_epochs 10"]


def test_without_a_seed_at_both_values_nothing_is_compared_with_itself(make_run):
    runs = [run_at(make_run, "static", epochs, seed, 0.5) for epochs, seed in ((1, 0), (2, 1))]
    assert changes_along(groups_along(group_runs([read_run(path) for path in runs]), "local_epochs")) is None


def test_texts_stand_in_the_order_in_which_they_come(make_run):
    runs = [
        make_run(f"norm-{norm}_name-static", "static", settings={"model": {"norm": norm}})
        for norm in ("group", "batch", None, True)
    ]
    found = groups_along(group_runs([read_run(path) for path in runs]), "norm")
    assert list(found.values) == ["group", "batch", "null", "true"]


def test_contestants_that_would_be_called_alike_keep_their_whole_labels(make_run):
    runs = [
        make_run(f"alpha-{alpha}_x", "static", settings={"data": {"alpha": alpha}, "method": {"setting": setting}})
        for alpha, setting in ((1, "the first of two rather long ones"), (2, "the other of two rather long ones"))
    ]
    found = groups_along(group_runs([read_run(path) for path in runs]), "alpha")
    assert list(found.rows) == ["alpha-1_x", "alpha-2_x"]


def test_each_is_compared_with_itself_at_the_first_value(along):
    (table,) = difference_tables(changes_along(along))
    assert table.title == "Final accuracy against itself at local_epochs 1"
    assert [row[0] for row in table.rows] == ["fedmef, local_epochs 2", "fedmef, local_epochs 10"]
    assert [row[2] for row in table.rows] == ["+11.00", "+23.00"]


def test_other_settings_may_differ_with_the_value_and_methods_may_have_it(make_run):
    federation = {"clients": 10, "client_state": "both"}
    runs = [
        run_at(make_run, "static", 1, 0, 0.5, clients=20),
        make_run("silo", "static", settings={"federation": federation | {"local_epochs": 2}}),
    ]
    assert len(groups_along(group_runs([read_run(path) for path in runs]), "clients").rows) == 1
    strengths = [
        make_run(f"a_rather_long_{name}", settings={"method": {"strength": value}})
        for name, value in (("first", 1.0), ("other", 0.5))
    ]
    found = groups_along(group_runs([read_run(path) for path in strengths]), "method.strength")
    assert (list(found.values), list(found.rows)) == (["0.5", "1"], ["fedmef"])


def test_a_contestant_is_called_by_its_directories_without_the_value(make_run):
    # The notes make labels of values longer than the directories' names.
    runs = [
        make_run(
            f"seed-{seed}_alpha-{alpha}_form-good",
            seed=seed,
            settings={"data": {"alpha": alpha, "note": f"{alpha} in many words that nobody wants to read"}},
        )
        for alpha in (10.0, 5.0)
        for seed in (0, 1)
    ]
    found = groups_along(group_runs([read_run(path) for path in runs]), "alpha")
    assert (list(found.values), list(found.rows)) == (["5", "10"], ["form-good"])


def test_what_cannot_be_laid_along_a_key_is_refused(make_run):
    def groups(*paths):
        return group_runs([read_run(path) for path in paths])

    one, two = (run_at(make_run, "static", epochs, 0, 0.5) for epochs in (1, 2))
    with pytest.raises(UserError, match="no configuration has a key speed"):
        groups_along(groups(one, two), "speed")
    with pytest.raises(UserError, match=r"all groups have the same federation\.local_epochs, 1"):
        groups_along(groups(one), "local_epochs")
    with pytest.raises(UserError, match=r"fedavg has no federation\.local_epochs"):
        groups_along(groups(one, two, make_run("b", "fedavg")), "local_epochs")
    twin = make_run("twin", "static", settings={"federation": {"local_epochs": 1, "clients": 3}})
    with pytest.raises(UserError, match=r"have the same method and the same federation\.local_epochs"):
        groups_along(groups(one, two, twin), "local_epochs")
    for key in ("seed", "name"):
        with pytest.raises(UserError, match=f"runs that differ in {key} alone are averaged"):
            groups_along(groups(one, two), key)
    named = [make_run(name, settings={"a": {"kind": name}, "b": {"kind": "z"}}) for name in "xy"]
    with pytest.raises(UserError, match="several keys end in kind"):
        groups_along(groups(*named), "kind")


def test_the_plot_has_accuracies_and_differences(along, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(along_plot, "save_figure", lambda figure, path: saved.append(figure) or path)
    assert save_along(along, "static", tmp_path) == [tmp_path / "along.png"]
    save_along(along, None, tmp_path)
    (accuracies, differences), (alone,) = (figure.axes for figure in saved)
    assert [tick.get_text() for tick in accuracies.get_xticklabels()] == ["1", "2", "10"]
    for drawn, means in zip(accuracies.containers, ([40, 50], [30, 41, 53]), strict=True):
        assert list(drawn[0].get_ydata()) == pytest.approx(means)
    points = [line for line in differences.lines if line.get_marker() not in ("_", "None")]
    assert [point.get_ydata()[0] for point in points] == pytest.approx([1, 3])
    assert [point.get_markerfacecolor() == "white" for point in points] == [True, False]
    assert len(alone.containers) == 2


def test_a_group_without_an_accuracy_has_no_point(make_run, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(along_plot, "save_figure", lambda figure, path: saved.append(figure) or path)
    runs = [run_at(make_run, method, epochs, 0, 0.5) for method in ("static", "fedmef") for epochs in (1, 2)]
    untested = {"eval/accuracy_last": None, "eval/accuracy_best": None}
    federation = {"local_epochs": 3}
    runs += [
        make_run(f"{name}3", name, settings={"federation": federation}, **untested) for name in ("static", "prunefl")
    ]
    save_along(groups_along(group_runs([read_run(path) for path in runs]), "local_epochs"), None, tmp_path)
    (drawn,) = saved[0].axes
    assert [list(row[0].get_ydata()) for row in drawn.containers] == [[50, 50], [50, 50], []]


def test_compare_writes_and_prints_what_is_along(paths, tmp_path, capsys):
    compare(paths, tmp_path / "out", baseline="static", by="local_epochs")
    printed, written = capsys.readouterr().out, (tmp_path / "out" / "compare.md").read_text()
    for text in (printed, written, (tmp_path / "out" / "report.html").read_text()):
        assert "Final accuracy along local_epochs" in text
        assert "against static at the same local_epochs" in text
        assert "against itself at local_epochs 1" in text
    assert "](along.png)" in written
    rows = list(csv.DictReader((tmp_path / "out" / "differences.csv").read_text().splitlines()))
    assert [row["baseline"].count("local_epochs") for row in rows] == [1, 1, 1, 1]
    assert [row["run"] for row in rows][:2] == ["fedmef, local_epochs 2", "fedmef, local_epochs 10"]
