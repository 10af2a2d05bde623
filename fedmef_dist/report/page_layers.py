"""Density of every layer over the rounds, as strips on the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import numpy as np

from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.masks import LayerDensities, layer_densities
from fedmef_dist.report.scales import plain
from fedmef_dist.report.units import percent

_COLOURS = 8
_OPEN = 2  # groups whose strips are shown at once; more are unfolded one by one


@dataclass(frozen=True)
class Strip:
    """A layer: pieces of one density in one colour; ``data`` is JSON for the script, the densities are in per cent."""

    name: str
    paths: Sequence[tuple[str, str]]
    data: str
    first: str
    last: str


@dataclass(frozen=True)
class StripChart:
    """The layers of a group."""

    name: str
    reading: str
    rounds: int
    rows: Sequence[Strip]
    open: bool


@dataclass(frozen=True)
class Shades:
    """Colours from the lowest density to 1, each as many times as dense as the one before."""

    lowest: float

    def number(self, density: float) -> int:
        """0 to 7 for a density from 0 to 1."""
        if density <= self.lowest:
            return 0
        return min(_COLOURS - 1, int(_COLOURS * (1 - log(density) / log(self.lowest))))

    def keys(self) -> list[tuple[str, str]]:
        """What each colour means."""
        edges = [float(f"{100 * self.lowest ** (1 - number / _COLOURS):.2g}") for number in range(_COLOURS + 1)]
        return [(f"{plain(low)} to {plain(high)} %", f"e{place}") for place, (low, high) in enumerate(pairwise(edges))]


def layer_strips(groups: Sequence[RunGroup]) -> tuple[list[StripChart], list[tuple[str, str]]]:
    """A chart for each group that has logged densities, and what their colours mean."""
    found = [(group.label, one) for group in groups if (one := layer_densities(group)) is not None]
    if not found:
        return [], []
    lowest = min(float(one.density[one.density > 0].min(initial=0.1)) for _, one in found)
    shades = Shades(lowest)
    return [_chart(label, one, shades, len(found) <= _OPEN) for label, one in found], shades.keys()


def _chart(label: str, one: LayerDensities, shades: Shades, opened: bool) -> StripChart:
    rows = [_strip(name, values, shades) for name, values in zip(one.layers, one.density, strict=True)]
    reading = "A strip a layer, from the first round to the last; the darker (in the dark: the lighter), the denser."
    return StripChart(label, reading, one.density.shape[1], rows, opened)


def _strip(name: str, density: np.ndarray, shades: Shades) -> Strip:
    starts = np.flatnonzero(np.append(True, density[1:] != density[:-1]))
    ends = np.append(starts[1:], len(density))
    pieces: dict[int, str] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        colour = shades.number(float(density[start]))
        pieces[colour] = pieces.get(colour, "") + f"M{start} 0h{end - start}v1h-{end - start}z"
    values = [float(f"{100 * density[start]:.4g}") for start in starts]
    data = json.dumps(
        {"starts": (starts + 1).tolist(), "values": values, "rounds": len(density)}, separators=(",", ":")
    )
    paths = [(f"e{colour}", path) for colour, path in pieces.items()]
    return Strip(name, paths, data, percent(float(density[0])), percent(float(density[-1])))
