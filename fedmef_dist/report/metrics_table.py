"""All metrics of all runs as one table: CSV for programs of any language."""

import csv
import io
from collections.abc import Sequence

from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.rendering import csv_cell


def metrics_as_csv(groups: Sequence[RunGroup]) -> str:
    """A row for each round of each run: its group, seed, directory, and every metric that any round has.

    Numbers as they stand in metrics.jsonl; an empty cell where a round has not logged the metric.
    """
    runs = [(group, run) for group in groups for run in group.runs]
    keys = dict.fromkeys(key for _, run in runs for key in run.columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, ["run", "seed", "directory", *keys]))
    for group, run in runs:
        for line in run.metrics:
            cells = [group.label, run.config.get("seed"), str(run.path), *(line.get(key) for key in keys)]
            writer.writerow(map(csv_cell, cells))
    return out.getvalue()
