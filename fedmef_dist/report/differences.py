"""Groups against a baseline, seed by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.intervals import Paired, paired
from fedmef_dist.report.quantities import QUANTITIES, late_rounds
from fedmef_dist.report.runs import Run

# What is compared, and what tables and plots call it.
MEASURES = {"accuracy_last": "final accuracy", "accuracy_late": "late accuracy"}
_MOST_LABELS = 12


@dataclass(frozen=True)
class Difference:
    """A group less the baseline in one of `MEASURES`, paired by seed, as shares from -1 to 1.

    ``unmatched`` are the seeds with a value that the baseline has not, ``missed`` those of the baseline that the group
    has not.
    """

    label: str
    numbers: Paired
    unmatched: Sequence[int]
    missed: Sequence[int]


@dataclass(frozen=True)
class Differences:
    """All other groups against ``baseline``, for those of `MEASURES` that some pair of runs has.

    ``late_rounds`` are the first and the last round of late accuracy where they are the same for all runs, else None.
    """

    baseline: RunGroup
    by_measure: Mapping[str, Sequence[Difference]]
    late_rounds: tuple[int, int] | None


def differences_from(groups: Sequence[RunGroup], name: str) -> Differences:
    """Every group less the one whose label is ``name``, or the only one whose label contains it.

    Raises UserError where no group or several are meant, where there is no other, or where a group has a seed twice.
    """
    baseline = _baseline(groups, name)
    others = [group for group in groups if group is not baseline]
    if not others:
        raise _wrong("there is no other group to compare with the baseline", "name runs of another group too")
    found = {}
    for measure in MEASURES:
        rows = [_difference(group, baseline, QUANTITIES[measure]) for group in others]
        if any(row.numbers.pairs for row in rows):
            found[measure] = rows
    if not found:
        raise _wrong(f"no run has a seed in common with those of {baseline.label}", "run the same seeds of each group")
    spans = {late_rounds(run) for group in groups for run in group.runs}
    return Differences(baseline, found, spans.pop() if len(spans) == 1 else None)


def _baseline(groups: Sequence[RunGroup], name: str) -> RunGroup:
    same = [group for group in groups if group.label == name]
    meant = same or [group for group in groups if name in group.label]
    if len(meant) == 1:
        return meant[0]
    labels = [group.label for group in meant or groups]
    shown = "; ".join(labels[:_MOST_LABELS]) + (
        f"; and {more} more" if (more := len(labels) - _MOST_LABELS) > 0 else ""
    )
    problem = f"{len(meant)} groups have {name!r} in their names" if meant else f"no group has {name!r} in its name"
    raise _wrong(problem, f"give a whole name or a part that only one has: {shown}")


def _wrong(what: str, mend: str) -> UserError:
    return UserError(what, where="--baseline", mend=mend)


def _difference(group: RunGroup, baseline: RunGroup, quantity: Callable[[Run], float | None]) -> Difference:
    own, base = _by_seed(group, quantity), _by_seed(baseline, quantity)
    both = sorted(own.keys() & base.keys())
    numbers = paired([own[seed] - base[seed] for seed in both])
    return Difference(group.label, numbers, sorted(own.keys() - base.keys()), sorted(base.keys() - own.keys()))


def _by_seed(group: RunGroup, quantity: Callable[[Run], float | None]) -> dict[int, float]:
    values: dict[int, float] = {}
    for run in group.runs:
        seed, value = run.config.get("seed"), quantity(run)
        if not isinstance(seed, int):
            raise _wrong(f"{run.path} has no seed", "leave this run out")
        if seed in values:
            raise _wrong(f"{group.label} has seed {seed} twice, in {run.path} too", "leave one of the two out")
        if value is not None:
            values[seed] = value
    return values
