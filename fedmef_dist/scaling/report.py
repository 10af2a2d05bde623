"""A study's results as Markdown for people and as CSV for programs."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from fedmef_dist.report.units import scaled
from fedmef_dist.scaling.cost_model import CostModel
from fedmef_dist.scaling.measurement import Measurement, Quartiles, Results, efficiency, losses, round_seconds
from fedmef_dist.scaling.points import Point, Study
from fedmef_dist.scaling.prediction import modelled_seconds
from fedmef_dist.scaling.text import table

_PHASES = ("train", "wait", "reduce", "adjust", "eval", "other")
_NOTES = """\
Each cell is the median over {repeats} repetitions of {rounds} rounds, in brackets the quartiles; one round to warm up \
is left out. Repetitions of all points take turns. Efficiency is samples a rank and second of wall time, relative to \
the first line. Phases are means over the ranks: train (clients), wait (for the slowest rank), reduce (the sum over \
ranks), adjust (the server's update, in some rounds of the mask too), eval (test set), other (between rounds: log, \
metrics)."""


def markdown(study: Study, results: Results, model: CostModel, head: str) -> str:
    """What was measured, beside the model's word on it; ``head`` says where."""
    first = results[study.strong[0]]
    parts = [
        f"# Scaling\n\n{head}",
        _NOTES.format(repeats=len(first), rounds=first[0].rounds),
        f"## Strong scaling: {study.strong[0].cohort} clients a round\n\n{_scaling(study.strong, results, model)}",
        f"Where a round's time goes:\n\n{_phases(study.strong, results)}",
        f"What the efficiency lacks to 100 %, in points:\n\n{_losses(study.strong, results)}",
        f"## Weak scaling: the cohort grows with the ranks\n\n{_scaling(study.weak, results, model)}",
        f"What the efficiency lacks to 100 %, in points:\n\n{_losses(study.weak, results)}",
        f"## Clients of the population\n\n{_population(study.population, results)}" if study.population else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _scaling(points: Sequence[Point], results: Results, model: CostModel) -> str:
    base = results[points[0]]
    rows = []
    for point in points:
        runs = results[point]
        seconds, modelled, share = round_seconds(runs), modelled_seconds(model, runs), efficiency(runs, base)
        speed = share.median * point.ranks / points[0].ranks
        error = f"{modelled:.3f} ({100 * (modelled / seconds.median - 1):+.1f} %)"
        rows.append([str(point.ranks), str(point.cohort), _seconds(seconds), f"{speed:.2f}", _percent(share), error])
    return table(("Ranks", "Cohort", "Round (s)", "Speed-up", "Efficiency (%)", "Modelled (s)"), rows)


def _phases(points: Sequence[Point], results: Results) -> str:
    rows = []
    for point in points:
        runs = results[point]
        shares = [_median(run.phases[name] / run.seconds for run in runs) for name in _PHASES]
        rows.append([str(point.ranks), *(f"{100 * share:.2f}" for share in shares)])
    return table(("Ranks", *(f"{name} (%)" for name in _PHASES)), rows)


def _losses(points: Sequence[Point], results: Results) -> str:
    rows = []
    for point in points[1:]:
        lost = losses(results[point], results[points[0]])
        lacking = 1 - efficiency(results[point], results[points[0]]).median
        rows.append([str(point.ranks), f"{100 * lacking:.2f}", *(f"{100 * lost[name]:+.2f}" for name in _PHASES)])
    return table(("Ranks", "lacking", *_PHASES), rows)


def _population(points: Sequence[Point], results: Results) -> str:
    rows = []
    for point in points:
        runs = results[point]
        apart = _median((run.seconds - run.phases["train"]) / run.rounds for run in runs)
        sample = _median(run.phases["train"] * point.ranks / run.samples.sum() for run in runs)
        outside = _median(run.outside for run in runs)
        rows.append(
            [
                f"{point.clients:,}",
                f"{runs[0].samples.mean():.0f}",
                _seconds(round_seconds(runs)),
                f"{1000 * sample:.3f}",
                f"{1000 * apart:.1f}",
                f"{outside:.1f}",
                scaled(max(run.peak_bytes for run in runs), "B"),
            ]
        )
    header = (
        "Clients",
        "Samples a client",
        "Round (s)",
        "Training a sample (ms)",
        "Round without training (ms)",
        "Start and end (s)",
        "Peak memory",
    )
    return table(header, rows)


def comma_separated(results: Results) -> str:
    """One row a run: its point, and what was measured, in seconds and bytes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = ("ranks", "clients", "cohort", "repetition", "local_ranks", "rounds", "seconds", "samples")
    writer.writerow([*columns, *(f"{name}_seconds" for name in _PHASES), "reduce_bytes", "outside", "peak_bytes"])
    for point, runs in results.items():
        for repetition, run in enumerate(runs):
            writer.writerow([*asdict(point).values(), repetition, *_row(run)])
    return out.getvalue()


def _row(run: Measurement) -> list[float]:
    place = [run.local_ranks, run.rounds, run.seconds, float(run.samples.sum())]
    return [*place, *(run.phases[name] for name in _PHASES), run.reduce_bytes, run.outside, run.peak_bytes]


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _seconds(value: Quartiles) -> str:
    return f"{value.median:.3f} ({value.low:.3f} to {value.high:.3f})"


def _percent(value: Quartiles) -> str:
    return f"{100 * value.median:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"
