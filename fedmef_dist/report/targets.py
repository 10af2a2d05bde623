"""What a run has cost when its test accuracy first reaches a target."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.report.device_time import SECONDS
from fedmef_dist.report.groups import RunGroup, Spread, spread
from fedmef_dist.report.runs import Run

_SHARE = 0.95


@dataclass(frozen=True)
class AccuracyTarget:
    """A test accuracy from 0 to 1; ``chosen`` where it comes from the runs themselves, not from the user."""

    accuracy: float
    chosen: bool


@dataclass(frozen=True)
class Reached:
    """``seeds`` of a group's seeds have reached the target; the spreads are over those, at their first such round.

    ``seconds`` are a device's, see `with_device_seconds`.
    """

    seeds: int
    rounds: Spread
    bytes: Spread
    flops: Spread
    seconds: Spread


def target_of(groups: Sequence[RunGroup], accuracy: float | None) -> AccuracyTarget | None:
    """The user's ``accuracy``, else 95 % of the best group's mean best accuracy, rounded down to a whole per cent.

    None where nothing was given and no group has an accuracy. Raises UserError where ``accuracy`` is no share.
    """
    if accuracy is not None:
        if not 0 <= accuracy <= 1:
            raise UserError(
                f"{accuracy:g} is no accuracy", where="--target", mend="give a share, such as 0.75 for 75 %"
            )
        return AccuracyTarget(accuracy, chosen=False)
    best = [mean for group in groups if (mean := group.mean("eval/accuracy_best")) is not None]
    # Rounded first: 95 % of 0.8 is 76 %, but a little less in floating point.
    return AccuracyTarget(math.floor(round(100 * _SHARE * max(best), 6)) / 100, chosen=True) if best else None


def reached(group: RunGroup, target: AccuracyTarget) -> Reached:
    """When the group's seeds first had the target's accuracy in a test, and what they had cost by then."""
    lines = [line for run in group.runs if (line := _first(run, target.accuracy)) is not None]
    keys = ("round", "wire/total_bytes", "flops/total", SECONDS)
    return Reached(len(lines), *(spread(line.get(key) for line in lines) for key in keys))


def _first(run: Run, accuracy: float) -> Mapping[str, Any] | None:
    tested = (line for line in run.metrics if line.get("eval/accuracy") is not None)
    return next((line for line in tested if line["eval/accuracy"] >= accuracy), None)
