import csv
import io
import re

import pytest
from rich.console import Console

from fedmef_dist.base.text import printable
from fedmef_dist.report.compare import compare
from fedmef_dist.report.figures import folded, new_figure, save_figure
from fedmef_dist.report.rendering import Table, csv_cell, markdown, markdown_code, markdown_text, plot_text, terminal

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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("name-fedmef_density-0.1", "name-fedmef_density-0.1"),
        ("92.00 ± 2.83", "92.00 ± 2.83"),
        ("<script>alert(1)</script> & co", "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co"),
        ("a|b\\|c", "a\\|b\\\\\\|c"),
        ("[x](http://y) ![z]", "\\[x\\](http://y) !\\[z\\]"),
        ("*a* _b_ `c` ~~d~~ $e$", "\\*a\\* \\_b\\_ \\`c\\` \\~\\~d\\~\\~ \\$e\\$"),
        ("a\nb\x1b[31m", "a\\\\nb\\\\x1b\\[31m"),
    ],
)
def test_markdown_shows_text_letter_by_letter(text, shown):
    assert markdown_text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a=b", "`a=b`"), ("a`b``c", "``` a`b``c ```"), ("`", "`` ` ``"), ("a\nb", "`a\\nb`")]
)
def test_code_holds_backticks_and_stays_on_its_line(text, shown):
    assert markdown_code(text) == shown


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *(("=1+1", "'=1+1"), ("+x", "'+x"), ("-x", "'-x"), ("@x", "'@x"), (" =x", "' =x"), ("\t=x", "\\t=x")),
        *((-1.5, "-1.5"), (3, "3"), (None, ""), ("fedmef, density 0.1", '"fedmef, density 0.1"'), ("a\nb", "a\\nb")),
    ],
)
def test_a_spreadsheet_takes_no_text_for_a_formula_and_numbers_stay_numbers(cell, written):
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([csv_cell(cell), 1])
    assert out.getvalue() == f"{written},1"


@pytest.mark.parametrize("text", ["$x$", "$\\frac{$", "a$", "\\$5 and $6", "x_1^2 \\alpha", "$\\notacommand$"])
def test_a_plot_shows_dollars_and_backslashes_as_they_are(text, tmp_path):
    figure, (axes,) = new_figure(1)
    axes.set_title(folded(text, 32))
    save_figure(figure, tmp_path / "plot.png")
    shown, formula = axes.title._preprocess_math(plot_text(text))
    assert (shown, formula) == (text, False)


NASTY = "=cmd|'x'!A1 $\\frac{$ <b>|`*\x1b]0;t\x07[b]"


def test_a_report_over_runs_with_nasty_names(make_run, tmp_path, capsys):
    # A setting that differs and is long: the directories' names are the labels.
    runs = [make_run(name, "fed\x1b[2Javg", settings={"data": {"root": 99 * name}}) for name in (NASTY, "_second")]
    compare(runs, tmp_path / "out")
    shown = capsys.readouterr().out
    written = {path.name: path.read_text() for path in (tmp_path / "out").glob("compare.*")}
    assert not [text for text in (shown, *written.values()) if re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)]
    rows = list(csv.reader(written["compare.csv"].splitlines()))
    assert rows[1][:3] == [f"'{printable(NASTY)}", "fed\\x1b[2Javg", "1"]
    assert float(rows[1][rows[0].index("accuracy_best_mean")]) == 0.9
    lines = [line for line in written["compare.md"].splitlines() if line.startswith("| =cmd")]
    assert lines
    assert not [line for line in lines if "<b>" in line or re.search(r"(?<!\\)[`*$]", line)]


def test_differences_over_runs_with_nasty_names(make_run, tmp_path, capsys):
    runs = [make_run(name, settings={"data": {"root": 99 * name}}) for name in (NASTY, "_second")]
    compare(runs, tmp_path / "out", baseline=printable(NASTY))
    capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "out" / "differences.csv").read_text().splitlines()))
    assert {(row["run"], row["baseline"]) for row in rows} == {("_second", f"'{printable(NASTY)}")}
    told = [line for line in (tmp_path / "out" / "compare.md").read_text().splitlines() if "=cmd" in line]
    assert [line for line in told if line.startswith("## ")]
    assert not [line for line in told if "<b>" in line or re.search(r"(?<!\\)[`*$]", line)]


def test_a_run_whose_name_begins_with_an_underscore_is_in_the_legend(make_run, tmp_path, monkeypatch):
    from fedmef_dist.report import curves

    legends = []
    monkeypatch.setattr(curves, "add_legend", lambda figure, axes: legends.append(axes.get_legend_handles_labels()[1]))
    compare([make_run(name, settings={"data": {"root": 99 * name}}) for name in ("_one", "two")], tmp_path / "out")
    assert legends
    assert all([label.strip() for label in labels] == ["_one", "two"] for labels in legends)
