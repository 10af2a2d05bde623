"""One training step's memory as tables and as stacked bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.figures import new_figure, save_figure
from fedmef_dist.report.units import decimal_prefix, ratio, scaled
from fedmef_dist.simulation.footprint import Footprint, Setting

if TYPE_CHECKING:  # matplotlib takes long to load
    from matplotlib.figure import Figure

_NOTE = """\
held: kept for the backward pass, as measured; modelled: the same from layers and shapes alone. state: what lives from
step to step: weights, mask, momentum. peak: the most that was allocated at any time of the step, state included. /base:
as a multiple of the first row. gradient: exact where it is to the bit that of the same network with nothing packed or
recomputed, else the cosine between the two (active weights). dropped: share of the squared activations that pruning
drops. device: modelled for a simulated device, which packs its weights. step: its time here. 1 MB = 10^6 bytes."""


def report(footprints: Sequence[Footprint], own: Setting) -> str:
    """Two Markdown tables: the modules of the ``own`` setting, and all settings."""
    chosen = next(footprint for footprint in footprints if footprint.setting == own)
    return "\n".join(
        [
            f"Kept for the backward pass, {label(own)}:\n",
            *table(("module", "kind", "measured", "modelled", "difference"), _module_rows(chosen), words=2),
            "\nMethods:\n",
            *table(_SUMMARY, _summary_rows(footprints), words=2),
            f"\n{_NOTE}",
        ]
    )


def label(setting: Setting) -> str:
    """A setting's name in tables and plots."""
    parts = [setting.method]
    if setting.plan is not None:
        return f"{setting.method}, planned"
    if setting.prunes_like_weights:
        parts.append("p by layer")
    elif setting.sap.enabled:
        parts.append(f"p = {setting.prune_ratio:g}" if setting.prune_ratio else "exact")
    elif setting.norm == "nsconv":
        parts.append("unpacked")
    if setting.recompute != "none":
        parts.append("recomputed")
    return ", ".join(parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines of a Markdown table that also reads well as it stands; the first ``words`` columns are no numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [("-" * width if place < words else "-" * (width - 1) + ":") for place, width in enumerate(widths)]
    return [
        "| "
        + " | ".join(
            cell.ljust(width) if place < words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in (header, rule, *rows)
    ]


def _module_rows(footprint: Footprint) -> list[tuple[str, ...]]:
    modules = [
        (module["name"], module["kind"], module["bytes"], module["modelled_bytes"]) for module in footprint.modules()
    ]
    total = ("all", "", footprint.measured.activation_bytes, footprint.activations.bytes)
    return [
        (
            name or "(no module)",
            kind if name else "",
            scaled(measured, "B"),
            scaled(modelled, "B"),
            _difference(modelled, measured),
        )
        for name, kind, measured, modelled in (*modules, total)
    ]


def _difference(modelled: float, measured: float) -> str:
    return f"{100 * (modelled / measured - 1):+.1f} %" if measured else "nothing measured"


_SUMMARY = (
    "method",
    "gradient",
    "held",
    "/base",
    "modelled",
    "state",
    "peak",
    "/base",
    "dropped",
    "device",
    "step",
    "/base",
)


def _summary_rows(footprints: Sequence[Footprint]) -> list[tuple[str, ...]]:
    dense = footprints[0].measured
    return [
        (
            label(footprint.setting),
            gradient(footprint),
            scaled(footprint.measured.activation_bytes, "B"),
            ratio(footprint.measured.activation_bytes, dense.activation_bytes),
            scaled(footprint.activations.bytes, "B"),
            scaled(footprint.measured.state_bytes, "B"),
            scaled(footprint.measured.peak_bytes, "B"),
            ratio(footprint.measured.peak_bytes, dense.peak_bytes),
            f"{100 * footprint.dropped.mass:.1f} %",
            scaled(footprint.device.total, "B"),
            f"{1000 * footprint.median_seconds:.0f} ms",
            ratio(footprint.slowdown(footprints[0]), 1),
        )
        for footprint in footprints
    ]


def gradient(footprint: Footprint) -> str:
    """How exact a setting's gradient is."""
    return "exact" if footprint.cosine is None else f"{footprint.cosine:.4f}"


# Words that a kind of module is known by, and the bar's part that it falls to.
_FAMILIES = (
    ("Norm", "normalisation"),
    ("Conv", "convolution"),
    ("Linear", "linear"),
    ("Pool", "pooling"),
    ("LU", "activation function"),
    ("Hard", "activation function"),
    ("Sigmoid", "activation function"),
)
_STATE, _OTHER, _TRANSIENT = "weights, gradients, mask", "held: other", "in addition to them at the peak"
_PARTS = (_STATE, *dict.fromkeys(f"held: {family}" for _, family in _FAMILIES), _OTHER, _TRANSIENT)
# Told apart in grey: light and dark take turns, with hatches between.
_FILLS = (
    ("#555555", ""),
    ("#e8c48a", "///"),
    ("#1b4f8a", ""),
    ("#c9d8ea", "..."),
    ("#7a3b8f", "xx"),
    ("#f2f2f2", "\\\\\\"),
    ("#3f7d3a", "++"),
    ("white", ""),
)


def parts_of(footprint: Footprint) -> dict[str, int]:
    """The peak as a sum of parts: the state, what is held by families of layers, and what is left at the peak."""
    parts = dict.fromkeys(_PARTS, 0)
    measured = footprint.measured
    parts[_STATE] = measured.state_bytes
    for module in measured.modules:
        families = (f"held: {family}" for word, family in _FAMILIES if word in module.kind and module.name)
        parts[next(families, _OTHER)] += module.bytes
    parts[_TRANSIENT] = max(measured.peak_bytes - measured.state_bytes - measured.activation_bytes, 0)
    return parts


def save_bars(footprints: Sequence[Footprint], path: Path) -> None:
    """Draw one stacked bar a setting. Raises UserError where ``path`` cannot be written."""
    figure, (axes,) = new_figure(1)
    figure.set_size_inches(2.4 + 0.75 * len(footprints), 4.2)
    rows = [parts_of(footprint) for footprint in footprints]
    totals = [sum(row.values()) for row in rows]
    unit, prefix = decimal_prefix(max(totals))
    places, bottom = np.arange(len(rows)), np.zeros(len(rows))
    for part, (colour, hatch) in zip(_PARTS, _FILLS, strict=True):
        heights = np.array([row[part] for row in rows]) / unit
        if heights.max() > 0.002 * max(totals) / unit:  # what cannot be seen needs no entry
            axes.bar(places, heights, 0.7, bottom, color=colour, hatch=hatch, edgecolor="black", lw=0.6, label=part)
        bottom += heights
    names = [label(footprint.setting).replace(", ", "\n") for footprint in footprints]
    axes.set_xticks(places, names, fontsize=7)
    axes.set(ylabel=f"Memory at the peak of a training step ({prefix}B)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_plot(figure, path)


def save_plot(figure: "Figure", path: Path) -> None:
    """Write a figure where the option ``--out`` says. Raises UserError where it cannot be written."""
    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"the plot cannot be written: {getattr(error, 'strerror', None) or error}",
            where=f"--out {path}",
            mend="give a PNG file",
        ) from error
