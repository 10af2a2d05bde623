"""How masks move: the density of every layer over the rounds, and how much of a mask stays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.report.figures import add_legend, blank_figure, draw_line, folded, new_figure, save_figure
from fedmef_dist.report.groups import RunGroup
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
    seeds = [[held(run, key)[:rounds] for key in names[0]] for run in group.runs]
    return LayerDensities([name.removeprefix(_LAYER) for name in names[0]], np.mean(seeds, axis=0))


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
    """Write mask_stability.png where masks have changed and runs have logged how; returns the file, if any."""
    figure, (overlap, survived) = new_figure(2)
    drawn = [_draw_stability(overlap, survived, number, group) for number, group in enumerate(groups)]
    if not any(drawn):
        return []
    overlap.set(ylabel="Overlap with the mask before (%)")
    survived.set(ylabel="Active weights of the first mask (%)")
    for axes in (overlap, survived):
        axes.set(xlabel="Round")
        axes.grid(alpha=0.3, lw=0.5)
    add_legend(figure, survived if survived.lines else overlap)
    return [save_figure(figure, directory / "mask_stability.png")]


def _draw_stability(overlap: "Axes", survived: "Axes", number: int, group: RunGroup) -> bool:
    """Both lines of a group, as far as its runs have logged them; whether there was anything to draw."""
    rounds, values = changes(group, "sparsity/overlap")
    if len(rounds):
        draw_line(overlap, number, group.label, rounds, *_percent(values))
    lasting = [held(run, "sparsity/survived") for run in group.runs]
    known = not any(np.isnan(values).any() for values in lasting)
    if known:
        common = min(map(len, lasting))
        stacked = np.array([values[:common] for values in lasting])
        draw_line(survived, number, group.label, np.arange(1.0, common + 1), *_percent(stacked))
    return known or len(rounds) > 0


def changes(group: RunGroup, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Rounds (n,) in which every seed has logged ``key``, and the values (seeds, n) there, both float64."""
    seeds = [{line["round"]: line[key] for line in run.metrics if line.get(key) is not None} for run in group.runs]
    rounds = sorted(set.intersection(*map(set, seeds)))
    return np.array(rounds, np.float64), np.array([[one[number] for number in rounds] for one in seeds], np.float64)


def _percent(seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over the first axis and sample standard deviation, where there are several seeds, in percent."""
    return 100 * seeds.mean(axis=0), 100 * seeds.std(axis=0, ddof=1) if len(seeds) > 1 else None
