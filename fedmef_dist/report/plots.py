"""Plots that a paper can print: units on the axes, told apart without colour, the seeds' spread as a band."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmef_dist.report.runs import Group, Run
from fedmef_dist.report.units import decimal_prefix, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1b4f8a", "#c4501b", "#3f7d3a", "#7a3b8f", "#8a6d1b", "#444444")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "x", "P")


@dataclass(frozen=True)
class _Curve:
    """What accuracy is drawn against: a key of metrics.jsonl and how the axis names and scales it."""

    file: str
    key: str
    label: str
    unit: float


_CURVES = (
    _Curve("accuracy_rounds.png", "round", "Round", 1.0),
    _Curve("accuracy_wire.png", "wire/total_bytes", "Bytes on the wire (MB)", 1e6),
    _Curve("accuracy_flops.png", "flops/total", "Training compute (TFLOP)", 1e12),
)


def save_plots(groups: Sequence[Group], directory: Path) -> list[Path]:
    """Write every plot that the runs have measurements for; returns the files, in the order of the report."""
    files = []
    for curve in _CURVES:
        drawn = [(group.label, line) for group in groups if (line := _line(group, curve)) is not None]
        if drawn:
            files.append(save_figure(_draw_curves(drawn, curve), directory / curve.file))
    if any(group.mean(key) is not None for group in groups for key, _, _ in _BARS):
        files.append(save_figure(_draw_bars(groups), directory / "costs.png"))
    return files


@dataclass(frozen=True)
class _Line:
    """Float64 arrays of one length, a value an evaluation; ``deviation`` is None for a single seed."""

    x: np.ndarray
    accuracy: np.ndarray
    deviation: np.ndarray | None


def _line(group: Group, curve: _Curve) -> _Line | None:
    """The group's means over the seeds, at the rounds that every seed has evaluated; None where there are none."""
    seeds = [_points(run, curve.key) for run in group.runs]
    rounds = sorted(set.intersection(*(set(points) for points in seeds)))
    if not rounds:
        return None
    values = np.array([[points[number] for number in rounds] for points in seeds], dtype=np.float64)
    deviation = 100 * values[:, :, 1].std(axis=0, ddof=1) if len(seeds) > 1 else None
    return _Line(values[:, :, 0].mean(axis=0) / curve.unit, 100 * values[:, :, 1].mean(axis=0), deviation)


def _points(run: Run, key: str) -> dict[int, tuple[float, float]]:
    """Round -> (value of ``key``, accuracy), for the rounds that have both."""
    return {
        metrics["round"]: (metrics[key], metrics["eval/accuracy"])
        for metrics in run.metrics
        if metrics.get(key) is not None and metrics.get("eval/accuracy") is not None
    }


def _draw_curves(lines: Sequence[tuple[str, _Line]], curve: _Curve) -> "Figure":
    figure, (axes,) = new_figure(1)
    styles = zip(cycle(COLOURS), cycle(_LINES), cycle(_MARKERS), strict=False)
    for (label, line), (colour, dashes, marker) in zip(lines, styles, strict=False):
        every = max(1, len(line.x) // 12)
        axes.plot(line.x, line.accuracy, color=colour, ls=dashes, marker=marker, markevery=every, ms=4, label=label)
        if line.deviation is not None:
            low, high = line.accuracy - line.deviation, line.accuracy + line.deviation
            axes.fill_between(line.x, low, high, color=colour, alpha=0.18, lw=0)
    _scale_x([line for _, line in lines], axes)
    axes.set(xlabel=curve.label, ylabel="Test accuracy (%)")
    axes.grid(alpha=0.3, lw=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _scale_x(lines: Sequence[_Line], axes: "Axes") -> None:
    """Logarithmic where the runs end more than ten times apart; linear would press one of them into a corner."""
    ends = [float(line.x[-1]) for line in lines]
    if min(ends) > 0 and max(ends) > 10 * min(ends):
        axes.set_xscale("log")


# Key in summary.json, that of its dense FedAvg reference, and what the panel shows.
_BARS = (
    ("memory/activation_bytes", "reference/activation_bytes", "Activation memory"),
    ("wire/total_bytes", "reference/wire_bytes", "Bytes on the wire"),
)


def _draw_bars(groups: Sequence[Group]) -> "Figure":
    """A panel for each cost: every run's bar and, beside it, that of dense FedAvg."""
    figure, panels = new_figure(len(_BARS))
    for axes, (key, reference, title) in zip(panels, _BARS, strict=True):
        values = [group.mean(key) or 0.0 for group in groups]
        dense = [group.mean(reference) or 0.0 for group in groups]
        unit, prefix = decimal_prefix(max(values + dense))
        places = np.arange(len(groups))
        style: dict[str, Any] = {"width": 0.38, "edgecolor": "black", "lw": 0.8}
        shown = axes.bar(places - 0.2, np.array(values) / unit, color=COLOURS[0], label="this run", **style)
        axes.bar_label(shown, [ratio(*pair) for pair in zip(values, dense, strict=True)], fontsize=8, padding=2)
        axes.bar(places + 0.2, np.array(dense) / unit, color="white", hatch="///", label="dense FedAvg", **style)
        crowded: dict[str, Any] = {"rotation": 25, "ha": "right"} if len(groups) > 2 else {}
        axes.set_xticks(places, [group.label for group in groups], fontsize=8, **crowded)
        axes.set(
            ylabel=f"{title} ({prefix}B)",
            xlim=(-0.7, len(groups) - 0.3),
            ylim=(0, 1.25 * max(values + dense) / unit or 1),
        )
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    return figure


def new_figure(panels: int) -> tuple["Figure", list["Axes"]]:
    """A figure that belongs to no window and no global state, drawn by Agg wherever it runs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 3.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, panels, number + 1) for number in range(panels)]


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure; returns its file."""
    figure.savefig(path)
    return path
