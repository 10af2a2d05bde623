"""Plots that a paper can print: units on the axes, told apart without colour, the seeds' spread as a band."""

from collections.abc import Sequence
from pathlib import Path

from fedmef_dist.report.bars import save_costs, save_memory
from fedmef_dist.report.curves import save_around_adjustments, save_curves
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.masks import save_layer_densities, save_stability


def save_plots(groups: Sequence[RunGroup], directory: Path) -> list[Path]:
    """Write every plot that the runs have measurements for; returns the files, in the order of the report."""
    kinds = (save_curves, save_costs, save_memory, save_layer_densities, save_stability, save_around_adjustments)
    return [file for save in kinds for file in save(groups, directory)]
