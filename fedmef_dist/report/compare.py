"""The report over one or several runs: tables, plots, and a summary on the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.base.text import printable
from fedmef_dist.report.along import Along, groups_along
from fedmef_dist.report.along_plot import save_along
from fedmef_dist.report.along_tables import along_table
from fedmef_dist.report.device_time import parse_device, with_device_seconds
from fedmef_dist.report.difference_plot import save_differences
from fedmef_dist.report.difference_tables import difference_tables, differences_as_csv
from fedmef_dist.report.differences import Differences, changes_along, differences_along, differences_from
from fedmef_dist.report.groups import RunGroup, group_runs
from fedmef_dist.report.metrics_table import metrics_as_csv
from fedmef_dist.report.plots import PLOTS, plots_as_markdown, save_plots
from fedmef_dist.report.rendering import Table, markdown, terminal
from fedmef_dist.report.runs import read_run
from fedmef_dist.report.tables import comma_separated, tables
from fedmef_dist.report.targets import target_of

PAGE = "report.html"
_WIDTH_OF_A_FILE = 160
_WIDTH_OF_A_NOTE = 110


def compare(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    target: float | None = None,
    baseline: str | None = None,
    by: str | None = None,
    device: str | None = None,
) -> None:
    """Write report.html, compare.md, compare.csv, metrics.csv and the plots of the runs, and print the tables.

    ``out`` defaults to ``report`` inside a single run's directory, and to ``report`` here for several; ``target`` is
    a test accuracy from 0 to 1, by default a little below the best one of the runs. ``baseline`` is the name of a
    group, or a part of it: the other groups' differences from it, paired by seed, then have tables, a plot and
    differences.csv. ``by`` is a key of the configuration along which contestants are compared, each with the baseline
    at the same value and with itself at the first one; ``device`` says how fast a device is, see `parse_device`. What
    an earlier report wrote into ``out`` and this one does not have, as differences, is removed. Raises UserError
    where a run directory is missing, unfinished or damaged, is given twice, where ``target`` is no share, ``baseline``
    does not name one group, ``by`` no key or ``device`` no speeds, or where ``out`` cannot be written.
    """
    from fedmef_dist.report.page import report_page  # knows all defaults, for which torch must be loaded

    if not run_dirs:
        raise UserError("no run directory was given", mend="name one or several: fedmef-dist compare RUN_DIR ...")
    if len({os.path.realpath(path) for path in run_dirs}) < len(run_dirs):  # Path.resolve fails at a loop of links
        raise UserError("a run directory was given twice", mend="name each once: twice would count as two seeds")
    speeds = None if device is None else parse_device(device)
    runs = [read_run(path) for path in run_dirs]
    groups = group_runs(runs if speeds is None else [with_device_seconds(run, speeds) for run in runs])
    aim = target_of(groups, target)
    _tell_repeated(groups)
    along = None if by is None else groups_along(groups, by)
    differences = _differences(groups, along, baseline)
    over = [] if along is None else [along_table(along)]
    shown = tables(groups, aim) + over
    shown += [table for one in differences for table in difference_tables(one)]
    directory = out or (run_dirs[0] / "report" if len(run_dirs) == 1 else Path("report"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        before = _files_of_a_report(directory)
        write_text(directory / PAGE, report_page(groups, aim, over, differences))
        write_text(directory / "compare.csv", comma_separated(groups, aim))
        write_text(directory / "metrics.csv", metrics_as_csv(groups))
        plots = save_plots(groups, directory)
        files = [directory / name for name in (PAGE, "compare.md", "compare.csv", "metrics.csv")]
        if along is not None:
            plots += save_along(along, baseline, directory)
        if differences:
            write_text(directory / "differences.csv", differences_as_csv(*differences))
            files.append(directory / "differences.csv")
            plots += save_differences(differences[0], directory)
        write_text(directory / "compare.md", "\n".join([*map(markdown, shown), plots_as_markdown(plots)]))
        for file in before - {*files, *plots}:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            "the report cannot be written", where=f"{directory}: {error.strerror}", mend="give --out DIR"
        ) from error
    _show(shown, [*files, *plots])


def _files_of_a_report(directory: Path) -> set[Path]:
    """The plots that an earlier report's compare.md shows, and its differences: beside a new one they would mislead."""
    try:
        written = (directory / "compare.md").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return set()
    shown = {directory / name for name in PLOTS if f"]({name})" in written}
    return shown | {file.with_suffix(".csv") for file in shown if file.stem == "differences"}


def _differences(groups: Sequence[RunGroup], along: Along | None, baseline: str | None) -> list[Differences]:
    """From the baseline, where there is one, and along the setting from its first value."""
    if along is None:
        return [] if baseline is None else [differences_from(groups, baseline)]
    within = None if baseline is None else differences_along(along, baseline)
    return [one for one in (within, changes_along(along)) if one is not None]


def _tell_repeated(groups: Sequence[RunGroup]) -> None:
    """Equal seeds and digests are one run, played again or copied: it says nothing of how seeds differ."""
    for group in groups:
        known: dict[tuple[Any, Any], Path] = {}
        for run in group.runs:
            seed, digest = run.config.get("seed"), run.summary.get("model/digest")
            other = known.setdefault((seed, digest), run.path)
            if other != run.path and digest is not None:
                tell(f"note: {run.path} has the seed and the weights of {other}, but counts as a seed of its own")


def _show(shown: Sequence[Table], files: Sequence[Path]) -> None:
    from rich.console import Console

    # A file or a pipe has no width: there the tables take what they need.
    width = get_terminal_size((_WIDTH_OF_A_FILE, 0)).columns
    console = Console(width=width, markup=False, emoji=False)
    for table in shown:
        console.print(*terminal(table, width), sep="\n")
        console.print(fill(table.note, min(width, _WIDTH_OF_A_NOTE)) + "\n", highlight=False)
    for file in files:
        console.print(printable(str(file)), highlight=False, soft_wrap=True)
