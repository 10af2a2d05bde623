"""Plots that a paper can print: units on the axes, told apart without colour, the seeds' spread as a band."""

from collections.abc import Sequence
from pathlib import Path

from fedmef_dist.report.bars import save_costs, save_memory
from fedmef_dist.report.curves import save_around_adjustments, save_curves
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.masks import save_layer_densities, save_stability

PLOTS = {
    "accuracy_rounds.png": "Test accuracy over rounds",
    "accuracy_wire.png": "Test accuracy over bytes on the wire",
    "accuracy_flops.png": "Test accuracy over training FLOPs",
    "accuracy_seconds.png": "Test accuracy over a device's modelled seconds",
    "costs.png": "Bytes on the wire beside dense FedAvg's, and training FLOPs",
    "memory.png": "Memory of a training step",
    "layer_density.png": "Density of every layer over the rounds",
    "mask_stability.png": "Jaccard overlap with the previous mask, and what is left of the first one",
    "around_adjustment.png": "Test accuracy around the adjustments of the mask",
    "along.png": "Test accuracy along a setting",
    "differences.png": "Differences, paired by seed, with 95 % intervals",
}


def save_plots(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write every plot that the runs have measurements for; returns the files, in the order of the report."""
    kinds = (save_curves, save_costs, save_memory, save_layer_densities, save_stability, save_around_adjustments)
    return [file for save in kinds for file in save(groups, directory)]


def plots_as_markdown(files: Sequence[Path]) -> str:
    """The plots among the files as images in Markdown, each under its title; they lie beside the text."""
    shown = [file.name for file in files if file.name in PLOTS]
    return "\n".join(f"## {PLOTS[name]}\n\n![{PLOTS[name]}]({name})\n" for name in shown)
