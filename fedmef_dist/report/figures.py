"""What all plots share: a figure without a window, one look a group that survives print in grey, legends that fit."""

import io
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmef_dist.base.atomic import write_bytes
from fedmef_dist.report.rendering import plot_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Dark and light take turns, so that neighbours differ in grey too.
COLOURS = ("#1b4f8a", "#e08a3c", "#3f7d3a", "#b58ad0", "#8b1a1a", "#7fb3d5", "#444444", "#b8a01f")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MOST_MARKERS = 12
# Legends: as many labels of so many characters fit inside; inches of a character and of what stands before a label.
_FEW, _SHORT = 4, 18
_CHARACTER, _HANDLE = 0.065, 0.65


def blank_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that belongs to no window and no global state, drawn by Agg wherever it runs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(panels: int) -> tuple["Figure", list["Axes"]]:
    """A figure with so many panels side by side, each as wide as a column of a paper."""
    figure = blank_figure(4.6 * panels, 3.2)
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure, whole or not at all; returns its file. PNG, unless the name ends otherwise."""
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:])
    write_bytes(path, content.getvalue())
    return path


def look(number: int) -> dict[str, Any]:
    """Colour, line and marker of group ``number``; of the first 35 no two have the same line and marker."""
    colour = COLOURS[number % len(COLOURS)]
    return {
        "color": colour,
        "ls": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "mfc": colour if number % 2 == 0 else "white",
        "ms": 4,
        "lw": 1.3,
    }


def draw_line(
    axes: "Axes", number: int, label: str, x: np.ndarray, mean: np.ndarray, deviation: np.ndarray | None
) -> None:
    """The line of group ``number`` through float64 arrays of one length, with a band of ± ``deviation`` around it."""
    # Each group starts its markers elsewhere: those of lines that lie close do not cover each other.
    every = max(1, len(x) // _MOST_MARKERS)
    axes.plot(x, mean, label=legend_label(label), markevery=(number % every, every), **look(number))
    if deviation is not None:
        axes.fill_between(x, mean - deviation, mean + deviation, color=look(number)["color"], alpha=0.15, lw=0)


def legend_label(label: str) -> str:
    """The label, which matplotlib would leave out of a legend if it began with an underscore."""
    return f" {label}" if label.startswith("_") else label


def add_legend(figure: "Figure", axes: "Axes") -> None:
    """One legend for all panels: inside ``axes`` for a few short labels, else below, where the figure grows for it."""
    handles, labels = axes.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    labels = [folded(label, int((width - _HANDLE) / _CHARACTER)) for label in labels]
    longest = max(len(line) for label in labels for line in label.splitlines())
    if len(labels) <= _FEW and longest <= _SHORT:
        axes.legend(handles, labels, frameon=False, fontsize=8)
        return
    columns = min(len(labels), max(1, int(width / (_CHARACTER * longest + _HANDLE))))
    lines = max(label.count("\n") + 1 for label in labels) * -(-len(labels) // columns)
    figure.set_size_inches(width, height + 0.17 * lines)
    style: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": 3.2}
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, **style)


def folded(label: str, width: int) -> str:
    """A label, as it is and without formulas, on as many lines as it takes at ``width`` characters a line."""
    return plot_text("\n".join(wrap(label, width)))
