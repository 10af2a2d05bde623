"""The report over one or several runs: tables, plots, and a summary on the terminal."""

from collections.abc import Sequence
from pathlib import Path

from fedmef_dist.atomic import write_text
from fedmef_dist.errors import UserError
from fedmef_dist.report.plots import save_plots
from fedmef_dist.report.runs import group_runs, read_run
from fedmef_dist.report.tables import comma_separated, markdown, terminal_table


def compare(run_dirs: Sequence[Path], out: Path | None = None) -> None:
    """Write compare.md, compare.csv and the plots of the runs, and print the table.

    ``out`` defaults to ``report`` inside a single run's directory, and to ``report`` here for several. Raises UserError
    where a run directory is missing, unfinished or damaged, is given twice, or where ``out`` cannot be written.
    """
    from rich.console import Console

    if not run_dirs:
        raise UserError("no run directory was given\nname one or several: fedmef-dist compare RUN_DIR ...")
    if len({path.resolve() for path in run_dirs}) < len(run_dirs):
        raise UserError("a run directory was given twice\nname each once: twice would count as two seeds")
    groups = group_runs([read_run(path) for path in run_dirs])
    directory = out or (run_dirs[0] / "report" if len(run_dirs) == 1 else Path("report"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "compare.md", markdown(groups))
        write_text(directory / "compare.csv", comma_separated(groups))
        plots = save_plots(groups, directory)
    except OSError as error:
        raise UserError(f"the report cannot be written\nto {directory}: {error.strerror}\ngive --out DIR") from error
    console = Console(soft_wrap=True)
    # A file or a pipe has no width: there the table takes what it needs.
    console.print(terminal_table(groups, console.width))
    for file in ("compare.md", "compare.csv", *(plot.name for plot in plots)):
        console.print(str(directory / file), highlight=False)
