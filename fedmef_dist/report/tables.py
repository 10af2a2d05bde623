"""The comparison as a table: Markdown and terminal for people, CSV with plain numbers for programs."""

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedmef_dist.report.runs import Group
from fedmef_dist.report.units import DASH, duration, percent, ratio, scaled

if TYPE_CHECKING:
    from rich.table import Table

_HEADER = (
    "Run",
    "Method",
    "Seeds",
    "Density",
    "Accuracy, last (%)",
    "Accuracy, best (%)",
    "Wire",
    "Wire / dense",
    "Activations",
    "Activations / dense",
    "Peak memory",
    "FLOPs",
    "Time",
)

# Column of compare.csv and its key in summary.json; bytes, FLOPs, seconds and shares as they stand there.
_NUMBERS = (
    ("density", "sparsity/density"),
    ("accuracy_last", "eval/accuracy_last"),
    ("accuracy_best", "eval/accuracy_best"),
    ("perplexity_last", "eval/perplexity_last"),
    ("wire_bytes", "wire/total_bytes"),
    ("dense_wire_bytes", "reference/wire_bytes"),
    ("activation_bytes", "memory/activation_bytes"),
    ("dense_activation_bytes", "reference/activation_bytes"),
    ("peak_bytes", "memory/peak_bytes"),
    ("flops", "flops/total"),
    ("seconds", "time/total"),
)

_NOTE = (
    "Accuracy is the mean and, over several seeds, ± the sample standard deviation; everything else is the mean. "
    '"dense" is dense FedAvg of the same model, rounds and cohort. 1 MB = 10^6 bytes.'
)


def markdown(groups: Sequence[Group]) -> str:
    """The table in Markdown, one row a group, with a note on what the columns mean."""
    rows = [_HEADER, ["---"] * len(_HEADER), *(_cells(group) for group in groups)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", _NOTE, ""])


def comma_separated(groups: Sequence[Group]) -> str:
    """The table as CSV, one row a group: means, and standard deviations over the seeds where there are several."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["run", "method", "seeds", *(name for column, _ in _NUMBERS for name in (f"{column}_mean", f"{column}_sd"))]
    )
    for group in groups:
        numbers = [value for _, key in _NUMBERS for value in (group.mean(key), group.deviation(key))]
        writer.writerow([group.label, group.method, len(group.runs), *("" if n is None else n for n in numbers)])
    return out.getvalue()


def terminal_table(groups: Sequence[Group], width: int) -> "Table":
    """The table for a terminal of ``width`` characters: one row a run where that fits, else one column a run."""
    from rich.table import Table

    rows = [_HEADER, *(_cells(group) for group in groups)]
    if _width(rows) > width:
        rows = min(rows, list(zip(*rows, strict=True)), key=_width)
    table = Table()
    for position, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if position else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Characters that the table takes: each column's widest cell, a space on both sides, and the rules between."""
    return 1 + sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True))


def _cells(group: Group) -> tuple[str, ...]:
    wire, activations = group.mean("wire/total_bytes"), group.mean("memory/activation_bytes")
    density = group.mean("sparsity/density")
    return (
        group.label,
        group.method,
        str(len(group.runs)),
        DASH if density is None else f"{density:.3g}",
        percent(group.mean("eval/accuracy_last"), group.deviation("eval/accuracy_last")),
        percent(group.mean("eval/accuracy_best"), group.deviation("eval/accuracy_best")),
        scaled(wire, "B"),
        ratio(wire, group.mean("reference/wire_bytes")),
        scaled(activations, "B"),
        ratio(activations, group.mean("reference/activation_bytes")),
        scaled(group.mean("memory/peak_bytes"), "B"),
        scaled(group.mean("flops/total"), ""),
        duration(group.mean("time/total")),
    )
