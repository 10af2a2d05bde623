"""Test accuracy around the adjustments of the mask, where runs have measured it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedmef_dist.report.groups import RunGroup, Spread, spread

# Key in metrics.jsonl behind "adjust/accuracy_" and what tables and plots call the step.
STEPS = {
    "before_extrusion": "before extrusion",
    "after_extrusion": "after extrusion",
    "after_prune": "after pruning",
    "after_grow": "after growing",
}


@dataclass(frozen=True)
class Around:
    """Over all adjustments of all seeds: accuracy from 0 to 1 at each of `STEPS`, and the change by prune and grow."""

    adjustments: int
    accuracies: Sequence[Spread]
    change: Spread


def around_adjustments(group: RunGroup) -> Around | None:
    """The group's accuracies around the adjustments that were tested at all steps; None where there are none."""
    keys = [f"adjust/accuracy_{step}" for step in STEPS]
    lines = [line for run in group.runs for line in run.metrics if all(line.get(key) is not None for key in keys)]
    if not lines:
        return None
    change = spread(line["adjust/accuracy_after_grow"] - line["adjust/accuracy_after_extrusion"] for line in lines)
    return Around(len(lines), [spread(line[key] for line in lines) for key in keys], change)
