"""Plots of predictions: speed-up to thousands of ranks, where a round goes, and how large cohorts fare."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.figures import save_figure
from fedmef_dist.scaling.cost_model import PARTS
from fedmef_dist.scaling.plots import new_figure
from fedmef_dist.scaling.prediction import Prediction, Predictor
from fedmef_dist.scaling.simulation import Simulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What can be told apart in print and by those who do not see colours: Okabe and Ito's, darkest first, with hatches.
_LOOKS = {
    "training": ("#0072B2", ""),
    "slowest client": ("#D55E00", "///"),
    "placement": ("#E69F00", "..."),
    "jitter": ("#CC79A7", "xxx"),
    "latency": ("#009E73", "---"),
    "bandwidth": ("#56B4E9", "\\\\\\"),
    "server": ("#444444", ""),
    "evaluation": ("#F0E442", "|||"),
    "drawing": ("#999999", "+++"),
    "rest": ("#DDDDDD", ""),
}
_CURVES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#E69F00", "D"), ("#444444", "x"))


def save_prediction_plots(
    predictor: Predictor, cohort: int, ranks: Sequence[int], simulated: Sequence[Simulated], directory: Path
) -> list[Path]:
    """Writes predicted_speedup.png, predicted_parts.png and predicted_cohorts.png; returns the files."""
    numbers = sorted({2**power for power in range(max(ranks).bit_length())} | set(ranks))
    strong = [predictor.predict(number, cohort) for number in numbers]
    drawn = {
        "predicted_speedup.png": _speed_up(strong, simulated),
        "predicted_parts.png": _parts(strong),
        "predicted_cohorts.png": _cohorts(predictor, numbers),
    }
    return [save_figure(figure, directory / name) for name, figure in drawn.items()]


def _speed_up(strong: Sequence[Prediction], simulated: Sequence[Simulated]) -> "Figure":
    figure, axes = new_figure()
    ranks = [each.ranks for each in strong]
    axes.plot(ranks, ranks, color="#888888", ls="--", lw=1, label="ideal")
    speeds = [each.efficiency * each.ranks for each in strong]
    axes.plot(ranks, speeds, color="#0072B2", marker="o", ms=3, label=f"{strong[0].cohort:,} clients a round")
    shown = [(each.ranks, strong[0].seconds / each.simulated) for each in simulated if each.cohort == strong[0].cohort]
    if shown:
        axes.plot(*zip(*shown, strict=True), color="#D55E00", ls="", marker="x", ms=6, mew=1.5, label="SimGrid")
    axes.set(xscale="log", yscale="log", ylabel="Speed-up over 1 rank", ylim=(0.8, 1.5 * max(ranks)))
    _finish(axes, ranks)
    axes.set_yticks(axes.get_xticks(), [f"{tick:,g}" for tick in axes.get_xticks()])
    axes.minorticks_off()
    return figure


def _parts(strong: Sequence[Prediction]) -> "Figure":
    figure, axes = new_figure()
    places, bottom = np.arange(len(strong)), np.zeros(len(strong))
    for name in PARTS:
        share = 100 * np.array([each.parts[name] / each.seconds if each.seconds else 0.0 for each in strong])
        if share.max() < 0.5:
            continue
        colour, hatch = _LOOKS[name]
        axes.bar(places, share, 0.8, bottom, color=colour, hatch=hatch, edgecolor="white", lw=0.3, label=name)
        bottom += share
    axes.set_xticks(places, [f"{each.ranks:,}" for each in strong], rotation=60, fontsize=8)
    axes.set(xlabel="Ranks", ylabel="Share of the round (%)", ylim=(0, 100))
    figure.legend(frameon=False, fontsize=7, ncols=4, loc="outside upper center")
    return figure


def _cohorts(predictor: Predictor, numbers: Sequence[int]) -> "Figure":
    figure, axes = new_figure()
    for (colour, marker), power in zip(_CURVES, range(1, 7), strict=True):
        predictions = [predictor.predict(number, 10**power) for number in numbers]
        axes.plot(
            numbers,
            [100 * each.efficiency for each in predictions],
            color=colour,
            marker=marker,
            ms=3,
            lw=1.2,
            label=f"{10**power:,}",
        )
    axes.set(xscale="log", ylabel="Efficiency (%)", ylim=(0, 105))
    _finish(axes, numbers)
    axes.legend(frameon=False, fontsize=7, title="clients a round", title_fontsize=7)
    return figure


def _finish(axes: "Axes", ranks: Sequence[int]) -> None:
    shown = [number for number in ranks if number & (number - 1) == 0 and number.bit_length() % 2]
    axes.set_xticks(shown, [f"{number:,}" for number in shown])
    axes.minorticks_off()
    axes.set_xlabel("Ranks")
    axes.grid(alpha=0.3, lw=0.5)
    axes.legend(frameon=False, fontsize=8)
