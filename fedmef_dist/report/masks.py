"""How masks move: the density of every layer over the rounds, and how much of a mask stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.figures import add_legend, blank_figure, draw_line, folded, new_figure, save_figure
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.mean_lines import Line, logged, mean_line
from fedmef_dist.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

_LAYER = "layer_density/"
_COLUMNS = 3
_MOST_NAMES = 30


@dataclass(frozen=True)
class LayerDensities:
    """``density``: float64 (layers, rounds), the share of active weights from 0 to 1, mean over the seeds."""

    layers: Sequence[str]
    density: np.ndarray


def layer_densities(group: RunGroup) -> LayerDensities | None:
    """Density of every layer in rounds 1, 2, ...; None where a seed has not logged it, or has other layers."""
    names = [[key for key in run.metrics[0] if key.startswith(_LAYER)] for run in group.runs]
    if not names[0] or any(other != names[0] for other in names):
        return None
    rounds = min(len(run.metrics) for run in group.runs)
    density = np.mean([[held(run, key)[:rounds] for key in names[0]] for run in group.runs], axis=0)
    if np.isnan(density).any():
        return None
    return LayerDensities([name.removeprefix(_LAYER) for name in names[0]], density)


def held(run: Run, key: str) -> np.ndarray:
    """A value a round, float64: that of the newest round up to it that has logged ``key``; NaN before the first."""
    values = np.array([np.nan if (value := line.get(key)) is None else value for line in run.metrics], dtype=np.float64)
    newest = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[newest]


def save_layer_densities(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write layer_density.png, one panel a group that has logged densities; returns the file, if any."""
    found = [(group.label, densities) for group in groups if (densities := layer_densities(group)) is not None]
    return [save_figure(_draw_densities(found), directory / "layer_density.png")] if found else []


def _draw_densities(found: Sequence[tuple[str, LayerDensities]]) -> "Figure":
    """A heat map of rounds and layers for each group, dark where dense, on one scale; white where nothing is left."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator

    rows, columns = -(-len(found) // _COLUMNS), min(len(found), _COLUMNS)
    names = min(max(len(one.layers) for _, one in found), _MOST_NAMES)
    figure = blank_figure(2.2 + 2.3 * columns, rows * (0.8 + 0.09 * max(names, 10)))
    # Layers differ by orders of magnitude; less than a decade would make structure of small differences.
    lowest = min(float(one.density[one.density > 0].min(initial=0.1)) for _, one in found)
    scale = LogNorm(lowest, 1.0)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(len(found))]
    alike = all(one.layers == found[0][1].layers for _, one in found)
    for place, (axes, (label, one)) in enumerate(zip(panels, found, strict=True)):
        image = _heat_map(axes, one, scale)
        axes.set_title(folded(label, 32), fontsize=8)
        axes.tick_params(labelsize=7)
        if place % columns == 0 or not alike:
            step = -(-len(one.layers) // _MOST_NAMES)
            axes.set_yticks(np.arange(0, len(one.layers), step), one.layers[::step], fontsize=6)
        else:
            axes.set_yticks([])
        if place + columns >= len(found):
            axes.set_xlabel("Round", fontsize=8)
    bar = figure.colorbar(image, ax=panels, ticks=LogLocator(subs=(1, 2, 5)), format=FuncFormatter(_as_percent))
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("Density of the layer (%)", fontsize=8)
    return figure


def _as_percent(share: float, _: int) -> str:
    return f"{100 * share:g}"


def _heat_map(axes: "Axes", one: LayerDensities, scale: "LogNorm") -> "QuadMesh":
    layers, rounds = one.density.shape
    visible = np.ma.masked_less_equal(one.density, 0.0)
    edges = np.arange(rounds + 1) + 0.5, np.arange(layers + 1) - 0.5
    image = axes.pcolormesh(*edges, visible, norm=scale, cmap="YlGnBu", rasterized=True)
    axes.invert_yaxis()
    return image


def save_stability(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write mask_stability.png, a panel for what runs have logged over several rounds; returns the file, if any."""
    panels = {
        "Jaccard overlap with the previous mask (%)": [overlap(group) for group in groups],
        "Active weights of the first mask (%)": [survived(group) for group in groups],
    }
    courses = {label: lines for label, lines in panels.items() if any(line is not None for line in lines)}
    if not courses:
        return []
    figure, drawn = new_figure(len(courses))
    for axes, (label, lines) in zip(drawn, courses.items(), strict=True):
        for number, (group, line) in enumerate(zip(groups, lines, strict=True)):
            if line is not None:
                draw_line(axes, number, group.label, line.x, line.y, line.deviation)
        axes.set(xlabel="Round", ylabel=label)
        axes.grid(alpha=0.3, lw=0.5)
    add_legend(figure, drawn[-1])
    return [save_figure(figure, directory / "mask_stability.png")]


def overlap(group: RunGroup) -> Line | None:
    """Overlap of the masks before and after each adjustment, in percent; None with fewer than two adjustments."""
    line = mean_line(group, logged("round"), logged("sparsity/overlap", 100))
    return line if line is not None and len(line.x) > 1 else None


def survived(group: RunGroup) -> Line | None:
    """How much of the first mask is still active, in percent, round by round; None where a seed has not logged it or
    there is one round.
    """
    lasting = [held(run, "sparsity/survived") for run in group.runs]
    if any(np.isnan(values).any() for values in lasting):
        return None
    common = min(map(len, lasting))
    if common < 2:
        return None
    seeds = 100 * np.array([values[:common] for values in lasting])
    deviation = seeds.std(axis=0, ddof=1) if len(seeds) > 1 else None
    return Line(np.arange(1.0, common + 1), seeds.mean(axis=0), deviation)
