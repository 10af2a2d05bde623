"""What paired differences say of their mean: standard error, Student's interval, effect size."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan

import numpy as np

COVERAGE = 0.95
# Differences of shares that are equal but for rounding have no spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Paired:
    """Numbers over ``pairs`` differences; what they are too few for is None.

    Attributes:
        pairs: how many differences.
        mean: of the differences.
        error: standard error of the mean: sample standard deviation / sqrt(pairs).
        low: lower end of the mean's two-sided 95 % interval, mean - t error with Student's t of pairs - 1 degrees.
        high: its upper end.
        effect: Cohen's d_z: mean / sample standard deviation; None too where all differences are equal.
    """

    pairs: int
    mean: float | None = None
    error: float | None = None
    low: float | None = None
    high: float | None = None
    effect: float | None = None

    @property
    def verdict(self) -> str:
        """``higher`` or ``lower`` where the interval leaves out 0, else ``not settled``."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not settled"
        return "higher" if self.low > 0 else "lower"


def paired(differences: Sequence[float]) -> Paired:
    """The numbers over finite differences."""
    count = len(differences)
    if not count:
        return Paired(0)
    values = np.array(differences, dtype=np.float64)
    mean = float(values.mean())
    if count == 1:
        return Paired(1, mean)
    deviation = float(values.std(ddof=1))
    if deviation < _NO_SPREAD:
        # Means that are added up in another order differ in their last digit: that is no difference either.
        mean = mean if abs(mean) > _NO_SPREAD else 0.0
        return Paired(count, mean, 0.0, mean, mean)
    error = deviation / sqrt(count)
    reach = student_quantile(count - 1) * error
    return Paired(count, mean, error, mean - reach, mean + reach, mean / deviation)


def student_quantile(freedom: int, coverage: float = COVERAGE) -> float:
    """The t within which a variable of Student's distribution falls, on either side of 0, with this probability.

    Found by halving an interval, from the finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.

    Args:
        freedom: degrees of freedom, at least 1.
        coverage: between 0 and 1.
    """
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _probability(middle, freedom) < coverage:
            low = middle
        else:
            high = middle
    return sqrt(freedom) * tan(high)


def _probability(angle: float, freedom: int) -> float:
    """P(|T| < t) for angle = atan(t / sqrt(freedom))."""
    odd = freedom % 2
    term, total = cos(angle) if odd else 1.0, 0.0
    for number in range(1, freedom // 2 + 1):
        total += term
        term *= cos(angle) ** 2 * (2 * number - 1 + odd) / (2 * number + odd)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
