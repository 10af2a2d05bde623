"""Charts of the page: lines drawn as SVG, whose values a script shows under the pointer."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmef_dist.report.mean_lines import Line
from fedmef_dist.report.scales import Scale, plain, widened

WIDTH, HEIGHT = 480, 310
LEFT, RIGHT, TOP, BOTTOM = 54, WIDTH - 14, 26, HEIGHT - 44
ROUND = "Round"  # the axis whose values are whole numbers
_MOST_POINTS = 300  # of a line: more cannot be told apart
_MOST_DOTS = 25


@dataclass(frozen=True)
class Series:
    """The line of group ``group``, called ``name``."""

    group: int
    name: str
    line: Line


@dataclass(frozen=True)
class Path:
    """A line in SVG; ``band`` is around it, ``whiskers`` at its points, either may be empty."""

    group: int
    line: str
    band: str
    whiskers: str
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """What the template needs; ``data`` is JSON for the script."""

    paths: Sequence[Path]
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    data: str
    summary: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM


@dataclass(frozen=True)
class LineChart:
    """Lines over a common axis; with ``names`` x counts places that are called so.

    ``reading`` says how to read it.
    """

    title: str
    reading: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    names: Sequence[str] = field(default=())

    def drawn(self) -> Drawing:
        """The chart as SVG."""
        thinned = [_thinned(one) for one in self.series]
        x, y = self._scales(thinned)
        shifts = np.linspace(-1, 1, len(thinned)) * _beside(len(thinned)) if self.names else np.zeros(len(thinned))
        placed = [(one, x.at(one.line.x) + by, y.at(one.line.y)) for one, by in zip(thinned, shifts, strict=True)]
        ticks = [(float(x.at(np.array(place))), name) for place, name in enumerate(self.names)] or x.ticks()
        data = {
            "x": self.x_label,
            "y": self.y_label,
            "names": list(self.names),
            "series": [
                {"group": one.group, "name": one.name, "points": _points(one.line, left, top)}
                for one, left, top in placed
            ],
        }
        paths = [self._path(one, left, top, y) for one, left, top in placed]
        x_label = f"{self.x_label}, logarithmic" if x.logarithmic else self.x_label
        return Drawing(paths, x_label, ticks, y.ticks(), json.dumps(data, separators=(",", ":")), self._summary())

    def _scales(self, series: Sequence[Series]) -> tuple[Scale, Scale]:
        x = np.concatenate([one.line.x for one in series])
        ends = [float(one.line.x[-1]) for one in series]
        # Linear would press the shortest line into a corner.
        logarithmic = not self.names and float(x.min()) > 0 and max(ends) > 10 * min(ends)
        low, high = float(x.min()), float(x.max())
        room = 24 if self.names else 0
        edges = [_edges(one.line) for one in series]
        lowest, highest = min(float(lower.min()) for lower, _ in edges), max(float(upper.max()) for _, upper in edges)
        return (
            Scale(low, high if high > low else low + 1, LEFT + room, RIGHT - room, logarithmic, self.x_label == ROUND),
            Scale(*widened(lowest, highest), BOTTOM, TOP),
        )

    def _path(self, one: Series, left: np.ndarray, top: np.ndarray, y: Scale) -> Path:
        band = whiskers = ""
        if one.line.deviation is not None:
            lower, upper = map(y.at, _edges(one.line))
            if self.names:
                ends = zip(left, upper, lower, strict=True)
                whiskers = "".join(f"M{x:.1f} {high:.1f}V{low:.1f}" for x, high, low in ends)
            else:
                band = _polyline(np.append(left, left[::-1]), np.append(upper, lower[::-1])) + "Z"
        few = len(left) <= _MOST_DOTS
        dots = [(round(float(x), 1), round(float(y), 1)) for x, y in zip(left, top, strict=True)] if few else []
        return Path(one.group, _polyline(left, top), band, whiskers, dots)

    def _summary(self) -> str:
        """What a reader who does not see the picture is told."""
        ends = [
            f"{one.name}: {plain(_rounded(one.line.y[0]))} to {plain(_rounded(one.line.y[-1]))}" for one in self.series
        ]
        return f"{self.y_label}, first and last value of each line: {'; '.join(ends)}."


def line_chart(
    title: str, reading: str, axes: tuple[str, str], series: Sequence[Series], names: Sequence[str] = ()
) -> list[LineChart]:
    """The chart; none where no line has two points: a single one shows no course."""
    shown = [one for one in series if len(one.line.x) > 1]
    return [LineChart(title, reading, *axes, shown, names)] if shown else []


def _beside(lines: int) -> float:
    """How far, in units of the paper, the outermost of so many lines lie beside their place, so that whiskers show."""
    return min(2.5 * (lines - 1), 16.0)


def _thinned(series: Series) -> Series:
    """Every so many points where there are too many, the last one always."""
    line, count = series.line, len(series.line.x)
    step = -(-count // _MOST_POINTS)
    if step == 1:
        return series
    kept = np.unique(np.append(np.arange(0, count, step), count - 1))
    deviation = None if line.deviation is None else line.deviation[kept]
    return Series(series.group, series.name, Line(line.x[kept], line.y[kept], deviation))


def _edges(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of the band around a line; what is never negative has none below 0."""
    spread = np.zeros_like(line.y) if line.deviation is None else line.deviation
    return np.maximum(line.y - spread, np.minimum(line.y, 0.0)), line.y + spread


def _polyline(left: np.ndarray, top: np.ndarray) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(left, top, strict=True))


def _points(line: Line, left: np.ndarray, top: np.ndarray) -> list[list[float]]:
    columns = [left.round(1), top.round(1), line.x, line.y, *([] if line.deviation is None else [line.deviation])]
    digits = (5, 5, 5, 5, 3)
    return [[_rounded(*pair) for pair in zip(row, digits, strict=False)] for row in zip(*columns, strict=True)]


def _rounded(value: float, digits: int = 5) -> float:
    number = float(f"{value:.{digits}g}")
    return int(number) if number == int(number) else number
