"""Differences from a baseline as points with intervals beside the line of no difference."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmef_dist.report.differences import MEASURES, Difference, Differences
from fedmef_dist.report.figures import COLOURS, folded, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_WIDTH_OF_A_LABEL = 32


def save_differences(differences: Differences, directory: Path) -> list[Path]:
    """Write differences.png, a panel a measure; returns the file. A point is hollow where nothing is settled."""
    figure, panels = new_figure(len(differences.by_measure))
    rows = next(iter(differences.by_measure.values()))
    labels = [folded(row.label, _WIDTH_OF_A_LABEL) for row in rows]
    lines = [line for label in labels for line in label.splitlines()]
    height = 1.3 + len(rows) * (0.15 + 0.13 * max(label.count("\n") + 1 for label in labels))
    figure.set_size_inches(4.6 * len(panels) + 0.05 * max(map(len, lines)), height)
    for axes, (measure, found) in zip(panels, differences.by_measure.items(), strict=True):
        _draw(axes, found)
        axes.set(xlabel=f"Difference in {MEASURES[measure]} (points)", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels if axes is panels[0] else [""] * len(rows), fontsize=8)
        axes.grid(alpha=0.3, lw=0.5, axis="x")
    # One scale for all panels, so that their intervals can be compared.
    ends = [end for axes in panels for end in axes.get_xlim()]
    for axes in panels:
        axes.set_xlim(min(ends), max(ends))
    figure.suptitle(folded(f"Against {differences.against}; 95 % intervals", 60 * len(panels)), fontsize=9)
    return [save_figure(figure, directory / "differences.png")]


def _draw(axes: "Axes", rows: Sequence[Difference]) -> None:
    """The first row at the top."""
    axes.axvline(0, color="black", lw=0.8)
    for place, row in enumerate(rows):
        numbers = row.numbers
        if numbers.mean is None:
            continue
        if numbers.low is not None and numbers.high is not None:
            axes.plot([100 * numbers.low, 100 * numbers.high], [place] * 2, color=COLOURS[0], lw=1.3, marker="|")
        settled = numbers.verdict != "not settled"
        filling = COLOURS[0] if settled else "white"
        axes.plot([100 * numbers.mean], [place], ls="", marker="o", ms=5, color=COLOURS[0], mfc=filling)
