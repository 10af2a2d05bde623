import csv
import io

import pytest

from fedmef_dist.report.groups import group_runs
from fedmef_dist.report.runs import read_run
from fedmef_dist.report.tables import comma_separated, tables
from fedmef_dist.report.targets import AccuracyTarget

STEPS = ("before_extrusion", "after_extrusion", "after_prune", "after_grow")


@pytest.fixture
def groups(make_run):
    paths = [
        make_run("fedmef-seed0", seed=0, accuracies=(0.5, 0.90)),
        make_run("fedmef-seed1", seed=1, accuracies=(0.5, 0.94)),
        make_run("dense", "fedavg", wire=1e7, **{"reference/activation_bytes": None, "memory/peak_bytes": None}),
    ]
    return group_runs([read_run(path) for path in paths])


def rows_of(groups, title, target=None):
    (table,) = (table for table in tables(groups, target) if table.title.startswith(title))
    return [tuple(row) for row in table.rows]


def test_accuracy_worked_out_by_hand(groups):
    assert rows_of(groups, "Accuracy") == [
        ("fedmef", "fedmef", "2", "92.00 ± 2.83", "92.00 ± 2.83", "0.2"),
        ("dense", "fedavg", "1", "90.00", "90.00", "0.2"),
    ]


def test_costs_worked_out_by_hand(groups):
    # 2 MB and 10 MB in 4 rounds of 5 clients, 60 % of it down.
    assert rows_of(groups, "Communication") == [
        ("fedmef", "1.20 MB", "800 kB", "2 MB", "0.2x", "100 kB", "2 T", "90 s"),
        ("dense", "6 MB", "4 MB", "10 MB", "1x", "500 kB", "2 T", "90 s"),
    ]


def test_memory_worked_out_by_hand(groups):
    assert rows_of(groups, "Memory") == [
        ("fedmef", "2.50 MB", "45.6 MB", "0.5x", "3 MB", "0.25x"),
        ("dense", "2.50 MB", "-", "-", "3 MB", "-"),
    ]


def test_the_way_to_a_target_worked_out_by_hand(make_run):
    paths = [
        make_run("a-0", seed=0, accuracies=(0.80, 0.9)),
        make_run("a-1", seed=1, accuracies=(0.70, 0.9)),
        make_run("a-2", seed=2, accuracies=(0.70, 0.7)),
        make_run("b", "fedavg", accuracies=(0.1, 0.2)),
    ]
    groups = group_runs([read_run(path) for path in paths])
    # Seed 0 in round 2 and 1 MB, seed 1 in round 4 and 2 MB.
    assert rows_of(groups, "To reach 75 %", AccuracyTarget(0.75, chosen=False)) == [
        ("a", "2 of 3", "3 ± 1.41", "1.50 ± 0.71 MB", "1.50 ± 0.71 T"),
        ("b", "0 of 1", "-", "-", "-"),
    ]


def test_a_chosen_target_says_where_it_comes_from(groups):
    notes = [tables(groups, AccuracyTarget(0.5, chosen))[-1].note for chosen in (True, False)]
    assert ["95 %" in note for note in notes] == [True, False]
    assert all("leaves the others out" in note for note in notes)


def test_accuracy_around_adjustments_has_a_table_where_runs_have_it(make_run):
    def adjusted(*accuracies):
        return {f"adjust/accuracy_{step}": accuracy for step, accuracy in zip(STEPS, accuracies, strict=True)}

    paths = [
        make_run("a", logged={2: adjusted(0.5, 0.4, 0.3, 0.4), 4: adjusted(0.7, 0.6, 0.5, 0.4)}),
        make_run("b", "fedavg"),
    ]
    groups = group_runs([read_run(path) for path in paths])
    cells = ("60.00 ± 14.14", "50.00 ± 14.14", "40.00 ± 14.14", "40.00 ± 0.00", "-10.00 ± 14.14")
    assert rows_of(groups, "Accuracy around") == [("a", "2", *cells)]


def test_how_masks_move_has_a_table_where_one_has_moved(make_run, groups):
    assert all(table.title != "How masks move" for table in tables(groups, None))

    def adjusted(overlap, survived, concentration, thin):
        values = {"overlap": overlap, "growth_concentration": concentration, "thin_filters": thin}
        grown = {} if survived is None else {"grown_survived": survived}
        return {f"sparsity/{key}": value for key, value in (values | grown).items()}

    still = make_run("b", "static", logged={1: {"sparsity/thin_filters": 9}})
    moving = make_run("a", logged={2: adjusted(0.5, None, 0.4, 3), 4: adjusted(0.7, 0.25, 0.2, 12)})
    moved = group_runs([read_run(path) for path in (moving, still)])
    assert rows_of(moved, "How masks move") == [
        ("a", "60.00", "25.00", "30.00", "12"),
        ("b", "-", "-", "-", "9"),
    ]


def test_only_text_has_a_perplexity(make_run, groups):
    assert "Perplexity, final" not in tables(groups, None)[0].header
    text = group_runs([read_run(make_run("text", **{"eval/perplexity_last": 5.25}))])
    table = tables(text, None)[0]
    assert dict(zip(table.header, table.rows[0], strict=True))["Perplexity, final"] == "5.25"


def test_every_row_fits_its_header(groups):
    assert all(
        len(row) == len(table.header) for table in tables(groups, AccuracyTarget(0.5, True)) for row in table.rows
    )


def test_csv_holds_plain_numbers_in_one_row_a_group(groups):
    sparse, dense = csv.DictReader(io.StringIO(comma_separated(groups, AccuracyTarget(0.92, chosen=False))))
    assert (sparse["run"], sparse["seeds"]) == ("fedmef", "2")
    assert float(sparse["accuracy_last_mean"]) == pytest.approx(0.92)
    assert float(sparse["accuracy_last_sd"]) == pytest.approx(0.0282843, rel=1e-4)
    assert float(sparse["wire_bytes_mean"]) == 2e6
    assert float(sparse["down_bytes_mean"]) == pytest.approx(1.2e6)
    assert float(sparse["client_round_bytes_mean"]) == 1e5
    assert float(sparse["device_bytes_mean"]) == 2.5e6
    assert (sparse["target_accuracy"], sparse["seeds_that_reached_target"]) == ("0.92", "1")
    assert (sparse["rounds_to_target_mean"], sparse["rounds_to_target_sd"]) == ("4.0", "")
    assert dense["peak_bytes_mean"] == dense["accuracy_last_sd"] == dense["rounds_to_target_mean"] == ""
    assert dense["seeds_that_reached_target"] == "0"


def test_csv_without_a_target_leaves_its_columns_empty(groups):
    row = next(csv.DictReader(io.StringIO(comma_separated(groups, None))))
    assert row["target_accuracy"] == row["seeds_that_reached_target"] == row["bytes_to_target_mean"] == ""


def test_late_accuracy_has_a_column_where_a_run_has_five_tests(make_run, groups):
    assert "Late (%)" not in tables(groups, None)[0].header
    paths = [make_run("l-0", accuracies=(0.1, *[0.8] * 4, 0.9)), make_run("l-1", seed=1, accuracies=(0.1, *[0.8] * 5))]
    late = group_runs([read_run(path) for path in paths])
    table = tables(late, None)[0]
    assert dict(zip(table.header, table.rows[0], strict=True))["Late (%)"] == "81.00 ± 1.41"
    assert "last 5 tests" in table.note
    row = next(csv.DictReader(io.StringIO(comma_separated(late, None))))
    assert float(row["accuracy_late_mean"]) == pytest.approx(0.81)
