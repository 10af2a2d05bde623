"""A table of text as Markdown and on a terminal; text from outside that stays text in Markdown, CSV and plots."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmef_dist.base.text import printable

if TYPE_CHECKING:
    import rich.table


_Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Rows of text, each with a cell for every column of ``header``; ``note`` says what the columns mean.

    With ``words`` the cells are no numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    words: bool = False


def markdown(table: Table) -> str:
    """The table in Markdown under its title, numbers to the right, with its note below."""
    rule = [":---", *("---:" for _ in table.header[1:])]
    rows = ([*map(markdown_text, table.header)], rule, *([*map(markdown_text, row)] for row in table.rows))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"## {markdown_text(table.title)}", "", *lines, "", markdown_text(table.note), ""])


# An underscore inside a word means nothing in Markdown.
_MARKDOWN = re.compile(r"[\\|`*\[\]~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def markdown_text(text: str) -> str:
    """The text as Markdown shows it letter by letter, in a cell of a table too; no HTML, link or formula."""
    for character, entity in _HTML.items():
        text = text.replace(character, entity)
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def markdown_code(text: str) -> str:
    """The text as code within a line of Markdown, whatever backticks it has."""
    text = printable(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{text}{space}{fence}"


def csv_cell(value: object) -> object:
    """A cell for the csv module: text that a spreadsheet would take for a formula gets a quote in front.

    Numbers stay what they are; None is an empty cell.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        text = printable(value)
        return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text
    return value


def plot_text(text: str) -> str:
    """The text as matplotlib shows it letter by letter, without formulas."""
    return printable(text, keep="\n").replace("$", r"\$")


def terminal(table: Table, width: int) -> list["rich.table.Table"]:
    """The table for a terminal of ``width`` characters: one row a run where that fits, else one column a run.

    Where neither fits, several tables share out the columns; each names the runs.
    """
    rows: _Rows = [table.header, *table.rows]
    turned: _Rows = list(zip(*rows, strict=True))
    if _width(rows) <= width:
        pieces = [rows]
    elif _width(turned) <= width:
        pieces = [turned]
    else:
        pieces = _pieces(rows, width)
    return [_shown(piece, table.title if piece is pieces[0] else None) for piece in pieces]


def _pieces(rows: _Rows, width: int) -> list[_Rows]:
    """The columns on as few tables as they need, each behind the first column."""
    names, *columns = zip(*rows, strict=True)
    pieces: list[list[Sequence[str]]] = [[names]]
    for column in columns:
        if len(pieces[-1]) > 1 and _width(list(zip(*pieces[-1], column, strict=True))) > width:
            pieces.append([names])
        pieces[-1].append(column)
    return [list(zip(*piece, strict=True)) for piece in pieces]


def _shown(rows: _Rows, title: str | None) -> "rich.table.Table":
    import rich.table

    shown = rich.table.Table(title=title, title_justify="left", title_style="bold")
    for position, name in enumerate(rows[0]):
        shown.add_column(name, justify="right" if position else "left", overflow="fold")
    for row in rows[1:]:
        shown.add_row(*map(printable, row))
    return shown


def _width(rows: _Rows) -> int:
    """Characters that the table takes: each column's widest cell, a space on both sides, and the rules between."""
    return 1 + sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True))
