"""`fedmef-dist scale`: measure, fit, predict, and write it all down."""

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fedmef_dist.base.atomic import write_json, write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.version import VERSION
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.cluster.interruption import Interruption, listening
from fedmef_dist.cluster.symptoms import processor_name
from fedmef_dist.config import load_config
from fedmef_dist.report.rendering import markdown_code
from fedmef_dist.scaling.cost_model import fit
from fedmef_dist.scaling.measurement import Results, read_measurement
from fedmef_dist.scaling.plots import save_plots
from fedmef_dist.scaling.points import Point, Study, parse_numbers, plan_study
from fedmef_dist.scaling.prediction import predict
from fedmef_dist.scaling.report import comma_separated, markdown
from fedmef_dist.scaling.runs import LaunchSite, find_place, measure
from fedmef_dist.tracking.timeline import read_timelines


def scale(
    path: Path, overrides: Sequence[str], ranks: str, clients: str, repeats: int, rounds: int, out: Path | None
) -> None:
    """Measure every point, as far as it is not there already, and write the report.

    Raises:
        UserError: the configuration or a list of numbers does not fit, or there are too few tasks or clients.
        SystemExit: a run failed, or a signal stopped it.
    """
    config = load_config(path, overrides)
    numbers = parse_numbers(ranks, "--ranks")
    if not numbers:
        raise UserError("no number of ranks is given", where="--ranks", mend="write for example --ranks 1,2,4")
    study = plan_study(config, numbers, parse_numbers(clients, "--clients"))
    place = find_place()
    place.check(max(numbers))
    for point in study.points:
        load_config(path, [*overrides, *point.overrides(rounds)])  # wrong before the first run is better than after it
    directory = out or Path("runs") / f"{config.name}-scaling"
    with listening(ends_process=True) as interruption:
        results = _measure_all(place, path, overrides, study, rounds, repeats, directory, interruption)
        head = _head(path, overrides, place)
        _write(study, results, directory, head)


def _measure_all(
    place: LaunchSite,
    path: Path,
    overrides: Sequence[str],
    study: Study,
    rounds: int,
    repeats: int,
    out: Path,
    interruption: Interruption,
) -> Results:
    results: Results = {point: [] for point in study.points}
    # Points take turns: what changes the machine's speed for a while touches all of them.
    for repeat in range(repeats):
        for point in study.points:
            if interruption.asked_at is not None:  # the run before was over when the signal came
                raise SystemExit(STOPPED_EARLY)
            print(f"repetition {repeat + 1} of {repeats}: {point.name}", flush=True)
            run_dir = measure(place, path, overrides, point, rounds, repeat, out)
            results[point].append(read_measurement(run_dir, point, place.local_ranks(point.ranks)))
    return results


def _write(study: Study, results: Results, directory: Path, head: str) -> None:
    model = fit([run for runs in results.values() for run in runs])
    predictions = predict(model, study, results)
    report = markdown(study, results, model, predictions, head)
    write_text(directory / "scaling.md", report)
    write_text(directory / "scaling.csv", comma_separated(results))
    write_json(directory / "cost_model.json", asdict(model))
    _write_timeline(study.strong[-1], directory)
    plots = save_plots(study, results, predictions, directory)
    print(report)
    for name in ("scaling.md", "scaling.csv", "cost_model.json", "timeline.json", *(plot.name for plot in plots)):
        print(directory / name)


def _write_timeline(point: Point, directory: Path) -> None:
    """The trace of all ranks of one run in a single file, which Perfetto opens."""
    events = read_timelines(directory / "points" / f"{point.name}_0")
    write_text(directory / "timeline.json", json.dumps({"traceEvents": events}) + "\n")


def _head(path: Path, overrides: Sequence[str], place: LaunchSite) -> str:
    nodes = place.tasks_per_node
    where = "one machine" if nodes is None else f"an allocation of {len(nodes)} nodes with {sum(nodes)} tasks"
    return (
        f"{datetime.date.today().isoformat()}, {where}, {processor_name()}, {os.cpu_count()} processors a node; "
        f"fedmef_dist {VERSION}, torch {torch.__version__}, Python {platform.python_version()}.\n\n"
        f"Configuration: {markdown_code(' '.join([path.name, *overrides]))}."
    )
