"""Accuracy against rounds, bytes, FLOPs and a device's seconds, and around the adjustments of the mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.adjustments import STEPS, around_adjustments
from fedmef_dist.report.device_time import SECONDS
from fedmef_dist.report.figures import add_legend, draw_line, legend_label, look, new_figure, save_figure
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.mean_lines import Line, logged, mean_line
from fedmef_dist.report.scales import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class AccuracyCurve:
    """What accuracy is drawn against: a key of metrics.jsonl and how the axis names and scales it."""

    file: str
    key: str
    label: str
    unit: float


CURVES = (
    AccuracyCurve("accuracy_rounds.png", "round", "Round", 1.0),
    AccuracyCurve("accuracy_wire.png", "wire/total_bytes", "Bytes on the wire (MB)", 1e6),
    AccuracyCurve("accuracy_flops.png", "flops/total", "Training compute (TFLOP)", 1e12),
    AccuracyCurve("accuracy_seconds.png", SECONDS, "Time of a device, modelled (s)", 1.0),
)


def save_curves(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write a file for each of `CURVES` that the runs have numbers for; returns the files."""
    files = []
    for curve in CURVES:
        lines = [(number, group.label, accuracy_line(group, curve)) for number, group in enumerate(groups)]
        drawn = [(number, label, line) for number, label, line in lines if line is not None]
        if any(len(line.x) > 1 for _, _, line in drawn):  # a single point shows no course
            files.append(save_figure(draw_curves(drawn, curve), directory / curve.file))
    return files


def accuracy_line(group: RunGroup, curve: AccuracyCurve) -> Line | None:
    """The group's mean accuracy in percent, at the rounds that every seed has evaluated; None where there are none."""
    return mean_line(group, logged(curve.key, 1 / curve.unit), logged("eval/accuracy", 100))


def draw_curves(lines: Sequence[tuple[int, str, Line]], curve: AccuracyCurve) -> "Figure":
    """Each line with its group's number and label."""
    figure, (axes,) = new_figure(1)
    for number, label, line in lines:
        draw_line(axes, number, label, line.x, line.y, line.deviation)
    axes.set(xlabel=curve.label, ylabel="Test accuracy (%)")
    _scale_x([line for _, _, line in lines], axes)
    axes.grid(alpha=0.3, lw=0.5)
    add_legend(figure, axes)
    return figure


def _scale_x(lines: Sequence[Line], axes: "Axes") -> None:
    """Logarithmic where the runs end more than ten times apart; linear would press one of them into a corner."""
    ends = [float(line.x[-1]) for line in lines]
    if min(ends) > 0 and max(ends) > 10 * min(ends):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.set_xlabel(f"{axes.get_xlabel()}, logarithmic")
        left, right = axes.get_xlim()
        steps = (1, 2, 5) if right < 1000 * left else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def save_around_adjustments(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write around_adjustment.png where runs have tested around their adjustments; returns the file, if any."""
    figure, (axes,) = new_figure(1)
    found = [(number, group.label, around_adjustments(group)) for number, group in enumerate(groups)]
    drawn = [(number, label, around) for number, label, around in found if around is not None]
    if not drawn:
        return []
    places = np.arange(len(STEPS))
    # Side by side, so that the whiskers do not cover each other.
    offsets = np.linspace(-0.06, 0.06, len(drawn)) * min(len(drawn) - 1, 4)
    for (number, label, around), offset in zip(drawn, offsets, strict=True):
        means = [100 * (one.mean or 0.0) for one in around.accuracies]
        deviations = [100 * (one.deviation or 0.0) for one in around.accuracies]
        axes.errorbar(
            places + offset, means, deviations, capsize=2, elinewidth=0.8, label=legend_label(label), **look(number)
        )
    axes.set_xticks(places, [step.replace(" ", "\n") for step in STEPS.values()], fontsize=8)
    axes.set(ylabel="Test accuracy (%)")
    axes.grid(alpha=0.3, lw=0.5, axis="y")
    add_legend(figure, axes)
    return [save_figure(figure, directory / "around_adjustment.png")]
