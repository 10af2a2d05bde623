"""The page's bars: bytes, compute, memory, time, and differences from a baseline with their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedmef_dist.report.differences import MEASURES, Difference, Differences
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.runs import Run
from fedmef_dist.report.units import duration, ratio, scaled
from fedmef_dist.tracking.timeline import PHASES

PHASE_WORDS = {
    "train": "training clients",
    "wait": "waiting for slower ranks",
    "reduce": "adding up over the ranks",
    "adjust": "averaging, pruning, growing",
    "eval": "testing",
    "other": "anything else",
}
PHASE_COLOURS = {name: f"k{number}" for number, name in enumerate(PHASE_WORDS)}


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its share of the longest, from 0 to 1, and a class of the style."""

    share: float
    colour: str


@dataclass(frozen=True)
class Bar:
    """The bar of a group, and ``mark``, the share of the longest at which a line stands for dense FedAvg."""

    name: str
    parts: Sequence[Part]
    value: str
    mark: float | None = None


@dataclass(frozen=True)
class BarChart:
    """Bars on one scale; ``keys`` say what the colours mean."""

    title: str
    reading: str
    rows: Sequence[Bar]
    keys: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class IntervalRow:
    """A difference; places are in per cent of the width, ``span`` is where the interval begins and how long it is."""

    name: str
    mean: float | None
    span: tuple[float, float] | None
    settled: bool
    value: str


@dataclass(frozen=True)
class IntervalChart:
    """Differences from a baseline around the line of no difference, at ``zero`` per cent of the width."""

    title: str
    reading: str
    zero: float
    rows: Sequence[IntervalRow]


@dataclass(frozen=True)
class _Amount:
    """A key of the run, that of its dense FedAvg reference where it has one, and what the chart of it says."""

    key: str
    reference: str | None
    title: str
    reading: str
    unit: str = "B"


_COSTS = (
    _Amount(
        "wire/total_bytes",
        "reference/wire_bytes",
        "Bytes on the wire",
        "What server and clients exchange in the whole run, both ways.",
    ),
    _Amount(
        "flops/total",
        None,
        "Training compute",
        "Floating point operations of all clients' training in the whole run, modelled.",
        "FLOP",
    ),
)
_MEMORY = (
    _Amount(
        "memory/device_bytes",
        None,
        "On a device, modelled",
        "Weights, gradients, mask, momentum and activations of a step on a device that stores them packed.",
    ),
    _Amount(
        "memory/peak_bytes",
        "reference/peak_bytes",
        "Peak of a step, measured",
        "The most that was allocated at once where the simulation ran, which stores masked weights as zeros.",
    ),
    _Amount(
        "memory/activation_bytes",
        "reference/activation_bytes",
        "Kept for the backward pass, measured",
        "What layers keep of their inputs until the gradient comes back.",
    ),
)


def cost_bars(groups: Sequence[RunGroup]) -> list[BarChart]:
    """Bytes on the wire beside dense FedAvg's, and compute."""
    return [chart for amount in _COSTS for chart in _amounts(groups, amount)]


def memory_bars(groups: Sequence[RunGroup]) -> list[BarChart]:
    """Memory of a training step."""
    return [chart for amount in _MEMORY for chart in _amounts(groups, amount)]


def _amounts(groups: Sequence[RunGroup], amount: _Amount) -> list[BarChart]:
    own = [group.mean(amount.key) for group in groups]
    dense = [None if amount.reference is None else group.mean(amount.reference) for group in groups]
    largest = max((value for value in (*own, *dense) if value is not None), default=0.0)
    rows = [
        Bar(
            group.label,
            [Part(value / largest, "k0")],
            scaled(value, amount.unit) + ("" if reference is None else f" ({ratio(value, reference)})"),
            None if reference is None else reference / largest,
        )
        for group, value, reference in zip(groups, own, dense, strict=True)
        if value is not None and largest
    ]
    marked = (
        " The upright line, and the multiple behind the value: dense FedAvg of the same model." if any(dense) else ""
    )
    return [BarChart(amount.title, amount.reading + marked, rows)] if rows else []


def time_bars(groups: Sequence[RunGroup]) -> list[BarChart]:
    """Where the seconds of the runs went, by phase."""
    rows = [(group, {name: group.spread(_seconds(name)).mean for name in PHASES}) for group in groups]
    totals = [group.spread(lambda run: run.total("time/round")).mean or 0.0 for group in groups]
    longest = max(totals, default=0.0)
    if not longest:
        return []
    shown = []
    for (group, phases), total in zip(rows, totals, strict=True):
        known = {name: seconds or 0.0 for name, seconds in phases.items()}
        known["other"] = max(total - sum(known.values()), 0.0)
        parts = [Part(seconds / longest, PHASE_COLOURS[name]) for name, seconds in known.items() if seconds]
        shown.append(Bar(group.label, parts, duration(total)))
    keys = [(word, PHASE_COLOURS[name]) for name, word in PHASE_WORDS.items()]
    reading = (
        "Seconds of all rounds on rank 0 of the machine that simulated the run, mean over the seeds, by what they were "
        "spent on. It tells about the simulation, not about the devices."
    )
    return [BarChart("Where time went", reading, shown, keys)]


def _seconds(phase: str) -> Callable[[Run], float | None]:
    return lambda run: run.total(f"time/{phase}")


def difference_intervals(differences: Differences) -> list[IntervalChart]:
    """A chart a measure, all on one scale."""
    rows = [row for found in differences.by_measure.values() for row in found]
    ends = [0.0]
    for row in rows:
        ends += [value for value in (row.numbers.mean, row.numbers.low, row.numbers.high) if value is not None]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 0.01
    low, high = low - room, high + room
    return [
        IntervalChart(
            f"{MEASURES[measure].capitalize()} against {differences.against}",
            "Mean difference in percentage points over pairs of runs with the same seed, with its 95 % interval. Left "
            "of the line is lower, right is higher; a hollow dot says that the interval includes 0, so nothing is "
            f"settled. The width goes from {100 * low:+.1f} to {100 * high:+.1f} points.",
            100 * (0 - low) / (high - low),
            [_interval(row, low, high) for row in found],
        )
        for measure, found in differences.by_measure.items()
    ]


def _interval(row: Difference, low: float, high: float) -> IntervalRow:
    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    numbers = row.numbers
    if numbers.mean is None:
        return IntervalRow(row.label, None, None, False, "no pair of seeds")
    text, span = f"{100 * numbers.mean:+.2f}", None
    if numbers.low is not None and numbers.high is not None:
        span = (place(numbers.low), place(numbers.high) - place(numbers.low))
        text += f" ({100 * numbers.low:+.2f} to {100 * numbers.high:+.2f})"
    settled = numbers.verdict != "not settled"
    return IntervalRow(row.label, place(numbers.mean), span, settled, f"{text}: {numbers.verdict}")
