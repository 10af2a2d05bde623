"""The page of the command ``compare``: everything over one run or many, in one file of HTML for any browser."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmef_dist.base.version import VERSION
from fedmef_dist.report.charts import LineChart
from fedmef_dist.report.difference_tables import difference_tables
from fedmef_dist.report.differences import Differences
from fedmef_dist.report.groups import RunGroup
from fedmef_dist.report.page_bars import (
    BarChart,
    IntervalChart,
    cost_bars,
    difference_intervals,
    memory_bars,
    time_bars,
)
from fedmef_dist.report.page_facts import all_settings, cards, digest_table, environment_table, settings_tables
from fedmef_dist.report.page_layers import StripChart, layer_strips
from fedmef_dist.report.page_lines import accuracy_lines, client_lines, cost_lines, mask_lines, time_lines
from fedmef_dist.report.page_spans import SpanChart, span_charts
from fedmef_dist.report.pages import render
from fedmef_dist.report.rendering import Table
from fedmef_dist.report.tables import (
    accuracy_table,
    adjustment_tables,
    costs_table,
    mask_tables,
    memory_table,
    target_tables,
)
from fedmef_dist.report.targets import AccuracyTarget


@dataclass(frozen=True)
class Section:
    """A part of the page: what it has of each kind is shown in this order; ``name`` is its anchor."""

    name: str
    title: str
    reading: str = ""
    lines: Sequence[LineChart] = field(default=())
    intervals: Sequence[IntervalChart] = field(default=())
    bars: Sequence[BarChart] = field(default=())
    strips: Sequence[StripChart] = field(default=())
    strip_keys: Sequence[tuple[str, str]] = field(default=())
    spans: Sequence[SpanChart] = field(default=())
    tables: Sequence[Table] = field(default=())
    folded: Sequence[tuple[str, Table]] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether no run has anything for it."""
        return not (self.lines or self.intervals or self.bars or self.strips or self.spans or self.tables)


def report_page(
    groups: Sequence[RunGroup],
    target: AccuracyTarget | None,
    along: Sequence[Table] = (),
    differences: Sequence[Differences] = (),
) -> str:
    """The page over groups of runs, with tables along a setting and differences from baselines where there are any."""
    title = groups[0].label if len(groups) == 1 else f"{len(groups)} groups compared"
    sections = [section for section in _sections(groups, target, along, differences) if not section.is_empty]
    return render(
        "report.html.jinja",
        title,
        introduction=_introduction(groups),
        groups=[group.label for group in groups],
        cards=cards(groups),
        sections=sections,
        footer=f"Written by fedmef-dist compare, version {VERSION}. The same numbers lie beside this page as CSV.",
    )


def _introduction(groups: Sequence[RunGroup]) -> str:
    runs = sum(len(group.runs) for group in groups)
    several = any(len(group.runs) > 1 for group in groups)
    of = f"{runs} run{'s' if runs > 1 else ''}"
    if several:
        of += f" in {len(groups)} group{'s' if len(groups) > 1 else ''}; the runs of a group differ only in the seed"
    spread = (
        "A line is the mean over a group's seeds, the band around it one sample standard deviation. " if several else ""
    )
    leave = "A press on a name in a legend leaves that group out of all curves. " if len(groups) > 1 else ""
    return (
        f"Over {of}. {spread}Point at a curve, or walk along it with the arrow keys, to see its values. {leave}"
        "Sizes are decimal: 1 MB is 1,000,000 bytes."
    )


def _sections(
    groups: Sequence[RunGroup],
    target: AccuracyTarget | None,
    along: Sequence[Table],
    differences: Sequence[Differences],
) -> list[Section]:
    against = [_against(one, number) for number, one in enumerate(differences)]
    return [_accuracy(groups, target, along), *against, *_ledgers(groups), *_training(groups), *_surroundings(groups)]


def _accuracy(groups: Sequence[RunGroup], target: AccuracyTarget | None, along: Sequence[Table]) -> Section:
    return Section(
        "accuracy",
        "Accuracy",
        "How well the global model does on the test set, and what it has cost until then.",
        lines=accuracy_lines(groups),
        tables=[accuracy_table(groups), *along, *target_tables(groups, target)],
    )


def _ledgers(groups: Sequence[RunGroup]) -> list[Section]:
    """What the simulated devices send, compute and hold."""
    return [
        Section(
            "costs",
            "Communication and compute",
            "What the simulated devices sent, received and computed; every message is really encoded and its length "
            "counted.",
            lines=cost_lines(groups),
            bars=cost_bars(groups),
            tables=[costs_table(groups)],
        ),
        Section(
            "memory",
            "Memory",
            "What a training step takes on a device.",
            bars=memory_bars(groups),
            tables=[memory_table(groups)],
        ),
    ]


def _training(groups: Sequence[RunGroup]) -> list[Section]:
    """What becomes of the mask, how clients fare, where time goes."""
    strips, keys = layer_strips(groups)
    return [
        Section(
            "mask",
            "The mask",
            "Which weights are active, and how that moves.",
            lines=mask_lines(groups),
            strips=strips,
            strip_keys=keys,
            tables=[*mask_tables(groups), *adjustment_tables(groups)],
        ),
        Section(
            "clients",
            "Clients",
            "How the model serves each client on its own data, where evaluation.per_client was set.",
            lines=client_lines(groups),
        ),
        Section(
            "time",
            "Time",
            "Where the simulation's time went: this cluster's seconds, not those of the devices.",
            lines=time_lines(groups),
            bars=time_bars(groups),
            spans=span_charts(groups),
        ),
    ]


def _surroundings(groups: Sequence[RunGroup]) -> list[Section]:
    return [
        Section("settings", "Settings", "What was run.", tables=settings_tables(groups), folded=all_settings(groups)),
        Section(
            "environment",
            "Environment and digests",
            "Where it ran, and what vouches for the numbers.",
            tables=[digest_table(groups), environment_table(groups)],
        ),
    ]


def _against(differences: Differences, number: int) -> Section:
    return Section(
        f"baseline{number or ''}",
        f"Against {differences.against}",
        "Runs with the same seed start from the same weights and ask the same clients, so they are compared pair by "
        "pair. An interval is for its row alone: of twenty rows without any effect about one looks settled.",
        intervals=difference_intervals(differences),
        tables=difference_tables(differences),
    )
