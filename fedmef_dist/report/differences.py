"""Groups against a baseline, or along a setting, seed by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.along import Along
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

    ``baseline`` is the baseline's label. ``unmatched`` are the seeds with a value that the baseline has not, ``missed``
    those of the baseline that the group has not.
    """

    label: str
    baseline: str
    numbers: Paired
    unmatched: Sequence[int]
    missed: Sequence[int]


@dataclass(frozen=True)
class Differences:
    """Groups against a baseline, or against one at each value of a setting, for `MEASURES` that some pair of runs has.

    ``against`` says in words what they are compared with. ``late_rounds`` are the first and the last round of late
    accuracy where they are the same for all runs, else None.
    """

    against: str
    by_measure: Mapping[str, Sequence[Difference]]
    late_rounds: tuple[int, int] | None


def differences_from(groups: Sequence[RunGroup], name: str) -> Differences:
    """Every group less the one whose label is ``name``, or the only one whose label contains it.

    Raises UserError where no group or several are meant, where there is no other, or where a group has a seed twice.
    """
    baseline = _baseline(groups, name)
    others = [(group.label, group, baseline) for group in groups if group is not baseline]
    return _differences(others, baseline.label)


def differences_along(along: Along, name: str) -> Differences:
    """Every other contestant less the one whose name is ``name``, or contains it alone, at each value of the setting.

    Raises UserError as `differences_from` does.
    """
    baseline = _meant(list(along.rows), name)
    pairs = [
        (f"{row}, {along.name} {value}", group, along.rows[baseline][value])
        for row, groups in along.rows.items()
        if row != baseline
        for value, group in _in_order(along, groups)
        if value in along.rows[baseline]
    ]
    return _differences(pairs, f"{baseline} at the same {along.name}")


def changes_along(along: Along) -> Differences | None:
    """Every contestant less itself at the setting's first value; None where no seed has been run at both."""
    first = along.values[0]
    pairs = [
        (f"{row}, {along.name} {value}", group, groups[first])
        for row, groups in along.rows.items()
        if first in groups
        for value, group in _in_order(along, groups)
        if value != first
    ]
    found = _by_measure(pairs)
    return _told(pairs, f"itself at {along.name} {first}", found) if found else None


def _in_order(along: Along, groups: Mapping[str, RunGroup]) -> list[tuple[str, RunGroup]]:
    return [(value, groups[value]) for value in along.values if value in groups]


# The label of a row, its group and the baseline of that.
_Pairs = Sequence[tuple[str, RunGroup, RunGroup]]


def _differences(pairs: _Pairs, against: str) -> Differences:
    if not pairs:
        raise _wrong("there is no other group to compare with the baseline", "name runs of another group too")
    found = _by_measure(pairs)
    if not found:
        raise _wrong(f"no run has a seed in common with those of {against}", "run the same seeds of each group")
    return _told(pairs, against, found)


def _by_measure(pairs: _Pairs) -> dict[str, list[Difference]]:
    rows = {measure: [_difference(*pair, QUANTITIES[measure]) for pair in pairs] for measure in MEASURES}
    return {measure: found for measure, found in rows.items() if any(row.numbers.pairs for row in found)}


def _told(pairs: _Pairs, against: str, found: Mapping[str, Sequence[Difference]]) -> Differences:
    spans = {late_rounds(run) for _, group, baseline in pairs for one in (group, baseline) for run in one.runs}
    return Differences(against, found, spans.pop() if len(spans) == 1 else None)


def _baseline(groups: Sequence[RunGroup], name: str) -> RunGroup:
    label = _meant([group.label for group in groups], name)
    return next(group for group in groups if group.label == label)


def _meant(known: Sequence[str], name: str) -> str:
    same = [label for label in known if label == name]
    meant = same or [label for label in known if name in label]
    if len(meant) == 1:
        return meant[0]
    labels = meant or known
    shown = "; ".join(labels[:_MOST_LABELS]) + (
        f"; and {more} more" if (more := len(labels) - _MOST_LABELS) > 0 else ""
    )
    problem = f"{len(meant)} groups have {name!r} in their names" if meant else f"no group has {name!r} in its name"
    raise _wrong(problem, f"give a whole name or a part that only one has: {shown}")


def _wrong(what: str, mend: str) -> UserError:
    return UserError(what, where="--baseline", mend=mend)


def _difference(label: str, group: RunGroup, baseline: RunGroup, quantity: Callable[[Run], float | None]) -> Difference:
    own, base = _by_seed(group, quantity), _by_seed(baseline, quantity)
    both = sorted(own.keys() & base.keys())
    numbers = paired([own[seed] - base[seed] for seed in both])
    return Difference(
        label, baseline.label, numbers, sorted(own.keys() - base.keys()), sorted(base.keys() - own.keys())
    )


def _by_seed(group: RunGroup, quantity: Callable[[Run], float | None]) -> dict[int, float]:
    values: dict[int, float] = {}
    for run in group.runs:
        seed, value = run.config.get("seed"), quantity(run)
        if not isinstance(seed, int):
            raise UserError(f"{run.path} has no seed", where="the pairs by seed", mend="leave this run out")
        if seed in values:
            what = f"{group.label} has seed {seed} twice, in {run.path} too"
            raise UserError(what, where="the pairs by seed", mend="leave one of the two out")
        if value is not None:
            values[seed] = value
    return values
