"""Differences from a baseline as tables for people, and as CSV with plain numbers for programs."""

import csv
import io
from collections.abc import Sequence

from fedmef_dist.report.differences import MEASURES, Difference, Differences
from fedmef_dist.report.intervals import Paired
from fedmef_dist.report.quantities import LATE_EVALUATIONS
from fedmef_dist.report.rendering import Table, csv_cell
from fedmef_dist.report.units import DASH


def difference_tables(differences: Differences) -> list[Table]:
    """A table for each measure, one row a group."""
    return [_table(differences, measure) for measure in differences.by_measure]


def _table(differences: Differences, measure: str) -> Table:
    rows = differences.by_measure[measure]
    return Table(
        f"{MEASURES[measure].capitalize()} against {differences.against}",
        ("Run", "Pairs", "Difference", "Standard error", "95 % interval", "Effect size", "Verdict"),
        [(row.label, *_cells(row.numbers)) for row in rows],
        " ".join([_meaning(differences, measure), *_unmatched(differences.against, rows)]),
    )


def _cells(numbers: Paired) -> tuple[str, ...]:
    interval = DASH if numbers.low is None else f"{_points(numbers.low)} to {_points(numbers.high)}"
    error = DASH if numbers.error is None else f"{100 * numbers.error:.2f}"
    effect = DASH if numbers.effect is None else f"{numbers.effect:+.2f}"
    return str(numbers.pairs), _points(numbers.mean), error, interval, effect, numbers.verdict


def _points(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:+.2f}"


def _meaning(differences: Differences, measure: str) -> str:
    when = "" if differences.late_rounds is None else ", rounds {} to {}".format(*differences.late_rounds)
    late = f"Late: the mean of a run's last {LATE_EVALUATIONS} tests{when}. " if measure == "accuracy_late" else ""
    return (
        "The mean over pairs of runs with the same seed, in percentage points, with Student's interval for each row by "
        f"itself. {late}Effect size: mean / standard deviation of the differences (Cohen's d_z). Not settled: the "
        "interval includes 0, or fewer than two pairs have been run."
    )


def _unmatched(baseline: str, rows: Sequence[Difference]) -> list[str]:
    """What is left out of the pairs, a sentence for each kind that there is."""
    unmatched = "; ".join(f"{row.label}: {_seeds(row.unmatched)}" for row in rows if row.unmatched)
    missed = "; ".join(f"{row.label}: {_seeds(row.missed)}" for row in rows if row.missed)
    told = {f"Seeds that {baseline} lacks": unmatched, f"Seeds of {baseline} that a row lacks": missed}
    return [f"{what}: {seeds}." for what, seeds in told.items() if seeds]


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


_NUMBERS = ("pairs", "mean", "error", "low", "high", "effect", "verdict")


def differences_as_csv(*all_differences: Differences) -> str:
    """All numbers as CSV, one row a group and measure; shares as they are, empty where there are too few pairs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("pairs", "mean", "standard_error", "low", "high", "effect_size", "verdict")
    writer.writerow(["run", "baseline", "measure", *names, "seeds_without_baseline", "seeds_of_baseline_alone"])
    found = [(measure, row) for one in all_differences for measure, rows in one.by_measure.items() for row in rows]
    for measure, row in found:
        numbers = [getattr(row.numbers, name) for name in _NUMBERS]
        seeds = (" ".join(map(str, seeds)) for seeds in (row.unmatched, row.missed))
        cells = [row.label, row.baseline, measure, *numbers, *seeds]
        writer.writerow(map(csv_cell, cells))
    return out.getvalue()
