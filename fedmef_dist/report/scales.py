"""Axes: from values to places on the paper, and where to put round numbers."""

from dataclasses import dataclass
from math import ceil, floor, isclose, log10

import numpy as np

_STEPS = (1, 2, 2.5, 5, 10)
_MOST_TICKS = 6
_LEAST = 1e-9


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high``, which differ, lie between ``start`` and ``end`` on the paper.

    Where they are ``whole`` numbers, such as rounds, no other ones are written on the axis.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False
    whole: bool = False

    def at(self, values: np.ndarray) -> np.ndarray:
        """Places, float64, of values of any shape; where the scale is logarithmic they are positive."""
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log10(values), log10(low), log10(high)
        return np.asarray(self.start + (values - low) / (high - low) * (self.end - self.start))

    def ticks(self) -> list[tuple[float, str]]:
        """Places of round values, and those as text without powers of ten."""
        values = _logarithmic(self.low, self.high) if self.logarithmic else self._linear()
        return [(round(float(self.at(np.array(value))), 1), plain(value)) for value in values]

    def _linear(self) -> list[float]:
        rough = (self.high - self.low) / _MOST_TICKS
        power = 10.0 ** floor(log10(rough))
        step = power * next(step for step in _STEPS if step * power >= rough * (1 - 1e-9))
        step = float(ceil(step)) if self.whole else step
        numbers = range(ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9) + 1)
        # Adding the step again and again would add up its rounding.
        return [round(number * step, 12) for number in numbers]


def widened(low: float, high: float) -> tuple[float, float]:
    """A range with some room on both sides, also around a single value."""
    room = 0.05 * (high - low)
    if room < _LEAST * max(abs(low), abs(high), 1.0):  # the same value but for rounding
        room = max(0.05 * abs(high), 1e3 * _LEAST)
    return low - room, high + room


def plain(value: float) -> str:
    """A number as people write it: "0.6", "1500", no power of ten up to six digits."""
    text = f"{value:.6g}"
    return f"{value:,.0f}" if "e+" in text else f"{value:.7f}".rstrip("0") if "e-" in text else text


def _logarithmic(low: float, high: float) -> list[float]:
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [v for v in values if low <= v <= high or isclose(v, low) or isclose(v, high)]
        if len(inside) <= _MOST_TICKS:
            break
    return inside[:: -(-len(inside) // _MOST_TICKS)] or [low, high]
