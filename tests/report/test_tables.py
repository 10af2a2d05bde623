import csv
import io

import pytest
from rich.console import Console

from fedmef_dist.report.runs import group_runs, read_run
from fedmef_dist.report.tables import comma_separated, markdown, terminal_table


@pytest.fixture
def groups(make_run):
    paths = [
        make_run("fedmef-seed0", seed=0, accuracies=(0.5, 0.90)),
        make_run("fedmef-seed1", seed=1, accuracies=(0.5, 0.94)),
        make_run("dense", "fedavg", wire=1e7, **{"reference/activation_bytes": None, "memory/peak_bytes": None}),
    ]
    return group_runs([read_run(path) for path in paths])


def test_markdown_rows_worked_out_by_hand(groups):
    lines = markdown(groups).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[1] == ["---"] * 13
    assert cells[2] == [
        *("fedmef", "fedmef", "2", "0.2", "92.00 ± 2.83", "92.00 ± 2.83"),
        *("2 MB", "0.2x", "3 MB", "0.25x", "45.6 MB", "2 T", "90 s"),
    ]
    assert cells[3][:6] == ["dense", "fedavg", "1", "0.2", "90.00", "90.00"]
    assert cells[3][6:11] == ["10 MB", "1x", "3 MB", "-", "-"]


def test_csv_holds_plain_numbers(groups):
    sparse, dense = csv.DictReader(io.StringIO(comma_separated(groups)))
    assert (sparse["run"], sparse["seeds"]) == ("fedmef", "2")
    assert float(sparse["accuracy_last_mean"]) == pytest.approx(0.92)
    assert float(sparse["accuracy_last_sd"]) == pytest.approx(0.0282843, rel=1e-4)
    assert float(sparse["wire_bytes_mean"]) == 2e6
    assert dense["peak_bytes_mean"] == dense["accuracy_last_sd"] == ""


@pytest.mark.parametrize("width", [80, 250])
def test_the_terminal_table_fits_and_cuts_nothing(groups, width):
    console = Console(width=width, record=True, quiet=False, file=io.StringIO())
    console.print(terminal_table(groups, width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "92.00 ± 2.83" in text
    assert "0.25x" in text
    first_row = next(line for line in text.splitlines() if "fedmef" in line)
    assert ("dense" in first_row) == (width == 80)
