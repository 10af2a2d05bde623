"""Accuracies over the values of a setting, beside the differences from a baseline."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.along import Along
from fedmef_dist.report.along_tables import measure_along
from fedmef_dist.report.differences import MEASURES, differences_along
from fedmef_dist.report.figures import add_legend, legend_label, look, new_figure, save_figure
from fedmef_dist.report.quantities import QUANTITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def save_along(along: Along, baseline: str | None, directory: Path) -> list[Path]:
    """Write along.png; returns the file. Values stand side by side, however far apart they are.

    Left are the means with the seeds' standard deviations; with the name of a ``baseline`` contestant, right are the
    other ones' differences from it with 95 % intervals, hollow where nothing is settled.
    """
    figure, panels = new_figure(1 if baseline is None else 2)
    _draw_accuracies(along, panels[0])
    if baseline is not None:
        _draw_differences(along, baseline, panels[1])
    for axes in panels:
        axes.set_xticks(range(len(along.values)), along.values)
        axes.set(xlabel=along.name, xlim=(-0.5, len(along.values) - 0.5))
        axes.grid(alpha=0.3, lw=0.5, axis="y")
    add_legend(figure, panels[0])
    return [save_figure(figure, directory / "along.png")]


def _draw_accuracies(along: Along, axes: "Axes") -> None:
    measure = measure_along(along)
    for number, (row, groups) in enumerate(along.rows.items()):
        spreads = [
            (place, groups[value].spread(QUANTITIES[measure]))
            for place, value in enumerate(along.values)
            if value in groups
        ]
        # A run that a callback ended before its first test has no accuracy, and not one of 0.
        known = [(place, one.mean, one.deviation or 0.0) for place, one in spreads if one.mean is not None]
        x, means, deviations = np.array(known, dtype=np.float64).reshape(-1, 3).T * [[1.0], [100.0], [100.0]]
        x += _offset(number, len(along.rows))
        axes.errorbar(x, means, deviations, capsize=2, elinewidth=0.8, label=legend_label(row), **look(number))
    axes.set(ylabel=f"{MEASURES[measure].capitalize()} (%)")


def _draw_differences(along: Along, name: str, axes: "Axes") -> None:
    differences = differences_along(along, name)
    measure = measure_along(along)
    numbers = {row.label: row.numbers for row in differences.by_measure.get(measure, ())}
    axes.axhline(0, color="black", lw=0.8)
    for number, row in enumerate(along.rows):
        for place, value in enumerate(along.values):
            found = numbers.get(f"{row}, {along.name} {value}")
            if found is None or found.mean is None:
                continue
            x, style = place + _offset(number, len(along.rows)), look(number)
            if found.low is not None and found.high is not None:
                axes.plot([x, x], [100 * found.low, 100 * found.high], color=style["color"], lw=1.3, marker="_")
            filling = style["color"] if found.verdict != "not settled" else "white"
            axes.plot([x], [100 * found.mean], **{**style, "ls": "", "mfc": filling})
    axes.set(ylabel="Difference (points), 95 % interval")
    axes.set_title(f"Against {differences.against}", fontsize=8)


def _offset(number: int, rows: int) -> float:
    """Side by side, so that whiskers do not cover each other."""
    return float(np.linspace(-0.06, 0.06, rows)[number]) * min(rows - 1, 4)
