"""Accuracies along a setting as a table."""

from fedmef_dist.report.along import Along
from fedmef_dist.report.differences import MEASURES
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.quantities import QUANTITIES
from fedmef_dist.report.rendering import Table
from fedmef_dist.report.units import DASH, percent


def measure_along(along: Along) -> str:
    """Of `MEASURES` late accuracy where all groups have it, else final accuracy."""
    groups = [group for row in along.rows.values() for group in row.values()]
    late = "accuracy_late"
    return late if all(group.spread(QUANTITIES[late]).mean is not None for group in groups) else "accuracy_last"


def along_table(along: Along) -> Table:
    """A row a contestant, a column a value of the setting."""
    measure = measure_along(along)

    def cell(group: RunGroup | None) -> str:
        if group is None:
            return DASH
        found = group.spread(QUANTITIES[measure])
        return percent(found.mean, found.deviation)

    return Table(
        f"{MEASURES[measure].capitalize()} along {along.name}",
        ("Run", *(f"{along.name} {value} (%)" for value in along.values)),
        [(row, *(cell(groups.get(value)) for value in along.values)) for row, groups in along.rows.items()],
        "On the test set: the mean and, over several seeds, ± the sample standard deviation. A row has one method; "
        "what else differs belongs to the columns.",
    )
