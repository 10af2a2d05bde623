"""A table of text as Markdown and on a terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table


_Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Table:
    """Rows of text, each with a cell for every column of ``header``; ``note`` says what the columns mean."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def markdown(table: Table) -> str:
    """The table in Markdown under its title, numbers to the right, with its note below."""
    rule = [":---", *("---:" for _ in table.header[1:])]
    rows = (table.header, rule, *table.rows)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {table.title}", "", *lines, "", table.note, ""])


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
        shown.add_row(*row)
    return shown


def _width(rows: _Rows) -> int:
    """Characters that the table takes: each column's widest cell, a space on both sides, and the rules between."""
    return 1 + sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True))
