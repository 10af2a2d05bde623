import io

import pytest
from rich.console import Console

from fedmef_dist.report.rendering import Table, markdown, terminal

SMALL = Table("Accuracy", ("Run", "Best (%)"), [("a|b", "92.00 ± 2.83"), ("dense", "90.00")], "A note.")
WIDE = Table(
    "Costs",
    ("Run", *(f"Column number {number}" for number in range(6))),
    [(f"a label of some length {row}", *(f"{row}{number} of all" for number in range(6))) for row in range(5)],
    "",
)


def text_of(table, width):
    console = Console(width=width, file=io.StringIO(), record=True)
    pieces = terminal(table, width)
    console.print(*pieces, sep="\n")
    return len(pieces), console.export_text()


def test_markdown_has_title_rows_and_note():
    assert markdown(SMALL).splitlines() == [
        "## Accuracy",
        "",
        "| Run | Best (%) |",
        "| :--- | ---: |",
        "| a\\|b | 92.00 ± 2.83 |",
        "| dense | 90.00 |",
        "",
        "A note.",
    ]


@pytest.mark.parametrize(("width", "pieces"), [(200, 1), (80, 3)])
def test_a_wide_table_is_shared_out_and_nothing_is_cut(width, pieces):
    number, text = text_of(WIDE, width)
    assert number == pieces
    assert max(map(len, text.splitlines())) <= width
    assert all(cell in text for row in (WIDE.header, *WIDE.rows) for cell in row)
    assert text.count("a label of some length 3") == pieces
    assert text.count("Costs") == 1


def test_a_table_that_fits_sideways_is_turned():
    table = Table("t", WIDE.header, WIDE.rows[:1], "")
    number, text = text_of(table, 60)
    assert number == 1
    assert next(line for line in text.splitlines() if "Column number 3" in line).split("│")[2].strip() == "03 of all"
