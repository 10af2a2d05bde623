"""A study's plots: speed-up and efficiency beside the ideal line, where the time goes, what clients cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.figures import save_figure
from fedmef_dist.scaling.measurement import Results, efficiency
from fedmef_dist.scaling.points import Point, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURED, _MODELLED = "#1b4f8a", "#c4501b"
_PHASES = {
    "train": ("#1b4f8a", ""),
    "wait": ("#c4501b", "///"),
    "reduce": ("#3f7d3a", "..."),
    "adjust": ("#7a3b8f", "xxx"),
    "eval": ("#8a6d1b", "---"),
    "other": ("#888888", ""),
}


def save_plots(study: Study, results: Results, directory: Path) -> list[Path]:
    """Write speedup.png, efficiency.png, phases.png and, for several populations, clients.png; returns the files."""
    drawn = {
        "speedup.png": _speed_up(study, results),
        "efficiency.png": _efficiency(study, results),
        "phases.png": _time(study.strong, results),
    }
    if len(study.population) > 1:
        drawn["clients.png"] = _clients(study.population, results)
    return [save_figure(figure, directory / name) for name, figure in drawn.items()]


def _speed_up(study: Study, results: Results) -> "Figure":
    figure, axes = new_figure()
    fewest = study.strong[0].ranks
    ranks = np.array([point.ranks for point in study.strong])
    shares = [efficiency(results[point], results[study.strong[0]]) for point in study.strong]
    speed = np.array([share.median for share in shares]) * ranks / fewest
    errors = np.array([[s.median - s.low, s.high - s.median] for s in shares]).T * ranks / fewest
    end = int(ranks[-1])
    axes.plot([fewest, end], [1, end / fewest], color="#888888", ls="--", lw=1, label="ideal")
    axes.errorbar(ranks, speed, errors, color=_MEASURED, marker="o", ms=4, capsize=3, label="measured")
    axes.set(xscale="log", yscale="log", ylabel=f"Speed-up over {fewest} rank{'s' * (fewest > 1)}")
    _finish(axes, ranks.tolist())
    ticks = axes.get_xticks()
    axes.set_yticks(np.asarray(ticks) / fewest, [f"{tick / fewest:g}" for tick in ticks])
    axes.minorticks_off()
    return figure


def _efficiency(study: Study, results: Results) -> "Figure":
    figure, axes = new_figure()
    curves = (("strong: same cohort", study.strong, _MEASURED, "o"), ("weak: cohort grows", study.weak, _MODELLED, "s"))
    axes.axhline(100, color="#888888", ls="--", lw=1, label="ideal")
    for label, points, colour, marker in curves:
        shares = [efficiency(results[point], results[points[0]]) for point in points]
        middle = 100 * np.array([share.median for share in shares])
        errors = 100 * np.array([[s.median - s.low, s.high - s.median] for s in shares]).T
        ranks = [point.ranks for point in points]
        axes.errorbar(ranks, middle, errors, color=colour, marker=marker, ms=4, capsize=3, label=label)
    axes.set(xscale="log", ylabel="Efficiency (%)", ylim=(0, 115))
    _finish(axes, [point.ranks for point in study.strong])
    return figure


def _time(points: Sequence[Point], results: Results) -> "Figure":
    """A bar for each number of ranks: rank-seconds a round, so that equal heights mean ideal scaling."""
    figure, axes = new_figure()
    places, bottom = np.arange(len(points)), np.zeros(len(points))
    for name, (colour, hatch) in _PHASES.items():
        height = np.array(
            [
                np.median([point.ranks * run.phases[name] / run.rounds for run in results[point]]).clip(0)
                for point in points
            ]
        )
        axes.bar(places, height, 0.6, bottom, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=name)
        bottom += height
    axes.set_xticks(places, [str(point.ranks) for point in points])
    axes.set(xlabel="Ranks", ylabel="Seconds of all ranks in a round", ylim=(0, 1.3 * bottom.max()))
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return figure


def _clients(points: Sequence[Point], results: Results) -> "Figure":
    figure, axes = new_figure()
    clients = [point.clients for point in points]
    seconds = [[(run.seconds - run.phases["train"]) / run.rounds for run in results[point]] for point in points]
    outside = [[run.outside for run in results[point]] for point in points]
    axes.plot(clients, np.median(seconds, axis=1), color=_MEASURED, marker="o", ms=4, label="a round without training")
    axes.plot(clients, np.median(outside, axis=1), color=_MODELLED, marker="s", ms=4, ls=":", label="start and end")
    axes.set(xscale="log", yscale="log", xlabel="Clients of the population", ylabel="Seconds")
    axes.grid(alpha=0.3, lw=0.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _finish(axes: "Axes", ranks: Sequence[int]) -> None:
    axes.set_xticks(ranks, [str(number) for number in ranks])
    axes.minorticks_off()
    axes.set_xlabel("Ranks")
    axes.grid(alpha=0.3, lw=0.5)
    axes.legend(frameon=False, fontsize=8)


def new_figure() -> tuple["Figure", "Axes"]:
    """An empty figure, as wide as a column of a paper."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.2), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()
