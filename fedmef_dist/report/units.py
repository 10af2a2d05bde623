"""Numbers as people read them; prefixes are decimal (1 MB = 10^6 bytes)."""

DASH = "-"


def decimal_prefix(value: float) -> tuple[float, str]:
    """The factor and the prefix in which ``value`` reads best: 12_345_678 gives (1e6, "M")."""
    # 999.5 would round to 1000 with three digits.
    power = next((power for power in range(6) if abs(value) < 999.5 * 1000**power), 6)
    return float(1000**power), ("", "k", "M", "G", "T", "P", "E")[power]


def scaled(value: float | None, unit: str) -> str:
    """Three digits and a decimal prefix: 12_345_678 with unit "B" is "12.3 MB"; a dash for None."""
    if value is None:
        return DASH
    factor, prefix = decimal_prefix(value)
    return f"{_three_digits(value / factor)} {prefix}{unit}".rstrip()


def scaled_spread(mean: float | None, deviation: float | None, unit: str) -> str:
    """A mean and its standard deviation, where there is one, in the mean's prefix: "12.3 ± 0.4 MB"."""
    if mean is None or deviation is None:
        return scaled(mean, unit)
    factor, prefix = decimal_prefix(mean)
    return f"{_three_digits(mean / factor)} ± {_three_digits(deviation / factor)} {prefix}{unit}".rstrip()


def percent(mean: float | None, deviation: float | None = None) -> str:
    """A share as percent, with its standard deviation where there is one: "95.31 ± 0.42"."""
    if mean is None:
        return DASH
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def ratio(value: float | None, reference: float | None) -> str:
    """``value`` as a multiple of ``reference``: "0.21x"; a dash where either is missing or the reference is 0."""
    return DASH if value is None or not reference else f"{value / reference:.3g}x"


def duration(seconds: float | None) -> str:
    """Seconds below two minutes, minutes below two hours, then hours."""
    if seconds is None:
        return DASH
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds / 3600)} h"


def _three_digits(value: float) -> str:
    digits = 0 if abs(value) >= 99.95 or value == int(value) else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}"
