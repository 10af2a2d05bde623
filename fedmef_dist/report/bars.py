"""Costs of groups as bars: memory, bytes on the wire, compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmef_dist.report.figures import COLOURS, folded, new_figure, save_figure
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.units import decimal_prefix, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {"edgecolor": "black", "lw": 0.6}
_DENSE = "dense FedAvg, measured"


@dataclass(frozen=True)
class _Bar:
    """A bar of every group: a key of the run, that of its dense FedAvg reference if it has one, and its look."""

    key: str
    reference: str | None
    label: str
    colour: str
    hatch: str


_MEMORY = (
    _Bar("memory/device_bytes", None, "on a device, modelled", "#444444", ""),
    _Bar("memory/peak_bytes", "reference/peak_bytes", "peak, measured", "#c9d8ea", "///"),
    _Bar("memory/activation_bytes", "reference/activation_bytes", "activations, measured", "#e08a3c", "..."),
)


def save_memory(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write memory.png where runs know their memory; returns the file, if any."""
    if not _known(groups, [bar.key for bar in _MEMORY]):
        return []
    figure, (axes,) = _figure(groups, 1, rows=len(_MEMORY))
    unit, prefix = _unit(groups, [key for bar in _MEMORY for key in (bar.key, bar.reference) if key])
    for place, bar in zip((-0.27, 0.0, 0.27), _MEMORY, strict=True):
        places = np.arange(len(groups)) + place
        style = {"color": bar.colour, "hatch": bar.hatch, "label": bar.label, **_STYLE}
        axes.barh(places, _values(groups, bar.key) / unit, 0.27, **style)
        if bar.reference is not None:
            _mark_reference(axes, places, _values(groups, bar.reference) / unit)
    _finish(axes, groups, f"Memory of a training step ({prefix}B)")
    _legend_below(figure, axes)
    return [save_figure(figure, directory / "memory.png")]


def _mark_reference(axes: "Axes", places: np.ndarray, values: np.ndarray) -> None:
    known = values > 0
    label = _DENSE if _DENSE not in axes.get_legend_handles_labels()[1] else None
    axes.plot(values[known], places[known], ls="", marker="D", ms=4, mfc="white", mec="black", label=label)


def save_costs(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write costs.png, bytes on the wire beside dense FedAvg's and compute, where runs know them; returns the file."""
    keys = ("wire/total_bytes", "flops/total")
    if not _known(groups, keys):
        return []
    figure, (wire, compute) = _figure(groups, 2, rows=2)
    _draw_wire(wire, groups)
    unit, prefix = _unit(groups, keys[1:])
    compute.barh(np.arange(len(groups)), _values(groups, "flops/total") / unit, 0.76, color=COLOURS[0], **_STYLE)
    _finish(wire, groups, wire.get_xlabel())
    _finish(compute, groups, f"Training compute, modelled ({prefix}FLOP)")
    compute.set_yticklabels([])
    _legend_below(figure, wire)
    return [save_figure(figure, directory / "costs.png")]


def _draw_wire(axes: "Axes", groups: Sequence[RunGroup]) -> None:
    keys = ("wire/total_bytes", "reference/wire_bytes")
    unit, prefix = _unit(groups, keys)
    own, dense = (_values(groups, key) / unit for key in keys)
    places = np.arange(len(groups))
    bars = axes.barh(places - 0.19, own, 0.38, color=COLOURS[0], label="this run", **_STYLE)
    axes.bar_label(bars, [ratio(*pair) for pair in zip(own, dense, strict=True)], fontsize=7, padding=2)
    axes.barh(places + 0.19, dense, 0.38, color="white", hatch="///", label="dense FedAvg of the same rounds", **_STYLE)
    axes.set(xlabel=f"Bytes on the wire ({prefix}B)", xlim=(0, 1.15 * max(*own, *dense) or 1))


def _known(groups: Sequence[RunGroup], keys: Sequence[str]) -> bool:
    return any(group.mean(key) is not None for group in groups for key in keys)


def _values(groups: Sequence[RunGroup], key: str) -> np.ndarray:
    """Means over the seeds, float64; 0, which draws no bar, where a run lacks the value."""
    return np.array([group.mean(key) or 0.0 for group in groups])


def _unit(groups: Sequence[RunGroup], keys: Sequence[str]) -> tuple[float, str]:
    return decimal_prefix(max(_values(groups, key).max() for key in keys))


def _figure(groups: Sequence[RunGroup], panels: int, rows: int) -> tuple["Figure", list["Axes"]]:
    """Room for ``rows`` bars of every group, and for labels that are long."""
    figure, axes = new_figure(panels)
    names = [_name(group).splitlines() for group in groups]
    width = 4.6 * panels + 0.05 * max(len(line) for lines in names for line in lines)
    figure.set_size_inches(width, 1.3 + len(groups) * (0.12 + 0.13 * max(rows, *map(len, names))))
    return figure, axes


def _finish(axes: "Axes", groups: Sequence[RunGroup], label: str) -> None:
    """The first group at the top."""
    axes.set_yticks(np.arange(len(groups)), list(map(_name, groups)), fontsize=8)
    axes.set(xlabel=label, ylim=(len(groups) - 0.45, -0.55))
    axes.grid(alpha=0.3, lw=0.5, axis="x")
    axes.set_axisbelow(True)


def _name(group: RunGroup) -> str:
    return folded(group.label, 32)


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    # The reference comes last; by itself it would come first, being no bar.
    entries = sorted(zip(*axes.get_legend_handles_labels(), strict=True), key=lambda entry: entry[1] == _DENSE)
    figure.legend(*zip(*entries, strict=True), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
