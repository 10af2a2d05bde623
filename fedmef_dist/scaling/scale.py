"""`fedmef-dist scale`: measure, fit, predict, and write it all down."""

import datetime
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from fedmef_dist.base.atomic import write_json, write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.version import VERSION
from fedmef_dist.cluster.environment import MOST_RANKS
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.cluster.interruption import Interruption, listening
from fedmef_dist.cluster.symptoms import processor_name
from fedmef_dist.config import Config, load_config
from fedmef_dist.report.rendering import markdown_code
from fedmef_dist.scaling.cluster_file import load_cluster
from fedmef_dist.scaling.drawing import drawing_seconds
from fedmef_dist.scaling.fitting import Fit, fit
from fedmef_dist.scaling.launch_site import LaunchSite, find_place
from fedmef_dist.scaling.lone_rank import LoneRank, lone_rank_section, measure_lone_rank
from fedmef_dist.scaling.measurement import Results, read_measurement
from fedmef_dist.scaling.plots import save_plots
from fedmef_dist.scaling.points import Point, Study, parse_numbers, plan_study
from fedmef_dist.scaling.prediction import Predictor, all_runs
from fedmef_dist.scaling.prediction_plots import save_prediction_plots
from fedmef_dist.scaling.prediction_report import (
    held_out_section,
    model_section,
    prediction_section,
    simulation_section,
)
from fedmef_dist.scaling.probe import Probe
from fedmef_dist.scaling.report import comma_separated, markdown
from fedmef_dist.scaling.runs import POINTS, measure, measure_network
from fedmef_dist.scaling.simulation import Simulated, find_simulator, refuse_strangers, simulate
from fedmef_dist.tracking.timeline import read_timelines

_DOUBLINGS = 5
_NETWORK = "network"  # folder of what probes have measured
_SIMULATION = "simulation"  # folder of traces while they are replayed


@dataclass(frozen=True)
class Outlook:
    """What is asked beyond what is measured.

    Attributes:
        ranks: numbers of ranks to predict, separated by commas; empty: doublings of the most that are measured.
        cluster: the file that describes the cluster; None: more of the machines that are measured.
        simulates: whether SimGrid replays the predicted rounds.
        plays: whether one rank of the most that are predicted is played for real, without the others.
    """

    ranks: str = ""
    cluster: Path | None = None
    simulates: bool = False
    plays: bool = False

    def predictor(
        self, config: Config, results: Results, probes: Sequence[Probe], draw: float
    ) -> tuple[Predictor, Fit]:
        """Fits the model and applies it to the cluster."""
        runs = all_runs(results)
        found = fit(runs, probes, draw)
        cluster = None if self.cluster is None else load_cluster(self.cluster)
        return Predictor(found.model, cluster, runs, config.seed), found

    def numbers(self, measured: Sequence[int]) -> list[int]:
        """The numbers of ranks. Raises UserError where they are none, or more than the cluster has."""
        numbers = parse_numbers(self.ranks, "--predict") or [max(measured) << step for step in range(1, _DOUBLINGS + 1)]
        cluster = None if self.cluster is None else load_cluster(self.cluster)
        if cluster is not None and not self.ranks:
            numbers = [number for number in numbers if number <= cluster.most_ranks] or [cluster.most_ranks]
        if max(numbers) > MOST_RANKS:
            raise UserError(
                f"no more than {MOST_RANKS:,} ranks are predicted, not {max(numbers):,}",
                where="--predict",
                mend="predict fewer",
            )
        if cluster is not None and max(numbers) > cluster.most_ranks:
            raise UserError(
                f"the cluster has {cluster.most_ranks:,} ranks, not {max(numbers):,}",
                where="--predict",
                mend=f"predict fewer, or raise nodes or ranks_per_node in {self.cluster}",
            )
        return numbers

    def refuse_one_rank(self, measured: Sequence[int]) -> None:
        """Raises UserError where one rank alone is measured and other machines or a network are asked for."""
        if max(measured) == 1 and (self.cluster is not None or self.simulates):
            raise UserError(
                "one rank hands nothing to a collective, so the bytes of a round's sum would not be known",
                where="--ranks",
                mend="measure two as well: --ranks 1,2",
            )


def scale(
    path: Path,
    overrides: Sequence[str],
    ranks: str,
    clients: str,
    repeats: int,
    rounds: int,
    out: Path | None,
    outlook: Outlook,
    hosts: str = "",
) -> None:
    """Measure every point, as far as it is not there already, fit, predict, and write the report.

    Raises:
        UserError: the configuration, a list of numbers or the cluster does not fit, there are too few tasks, ranks or
            clients, the simulator or mpirun that is asked for is not there, or ``out`` cannot be written.
        SystemExit: a run failed, or a signal stopped it.
    """
    config = load_config(path, overrides)
    numbers = parse_numbers(ranks, "--ranks")
    if not numbers:
        raise UserError("no number of ranks is given", where="--ranks", mend="write for example --ranks 1,2,4")
    predicted = outlook.numbers(numbers)
    if outlook.simulates:
        find_simulator()
    outlook.refuse_one_rank(numbers)
    study = plan_study(config, numbers, parse_numbers(clients, "--clients"))
    place = find_place(config.runtime.backend, hosts)
    place.check(max(numbers))
    for point in study.points:
        load_config(path, [*overrides, *point.overrides(rounds)])  # wrong before the first run is better than after it
    directory = out or Path("runs") / f"{config.name}-scaling"
    _make_folders(directory, outlook)
    with listening(ends_process=True) as interruption:
        probes = measure_network(place, path, overrides, numbers, directory / _NETWORK)
        results = _measure_all(place, path, overrides, study, rounds, repeats, directory, interruption)
        draw = drawing_seconds()
        predictor, found = outlook.predictor(config, results, probes, draw)
        simulated = _simulate(predictor, study, predicted, directory) if outlook.simulates else []
        lone = (
            _play(place, path, overrides, config, predictor, study, max(predicted), directory)
            if outlook.plays
            else None
        )
    sections = [
        markdown(study, results, found.model, _head(path, overrides, place)),
        "\n\n".join(
            filter(None, [f"## Cost model\n\n{model_section(found)}", held_out_section(results, probes, draw)])
        ),
        "## Prediction\n\n" + prediction_section(predictor, predictor.all(study, predicted), config.federation.rounds),
        *([f"## Simulation\n\n{simulation_section(simulated)}"] if outlook.simulates else []),
        *([_lone_rank(lone, found, predictor)] if lone is not None else []),
    ]
    text = "\n\n".join(sections)
    with _writing_to(directory):
        files = _write(directory, text, study, results, found, predictor, predicted, simulated)
    print(text)
    for file in files:
        print(file)


def _make_folders(directory: Path, outlook: Outlook) -> None:
    """Finds out before anything is measured that the folders cannot be made, or that one is another's."""
    if outlook.simulates:
        refuse_strangers(directory / _SIMULATION)
    with _writing_to(directory):
        for name in (POINTS, _NETWORK):
            (directory / name).mkdir(parents=True, exist_ok=True)


@contextmanager
def _writing_to(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the study cannot be written: {error.strerror}", where=str(directory), mend="choose another --out"
        ) from error


def _simulate(predictor: Predictor, study: Study, ranks: Sequence[int], directory: Path) -> list[Simulated]:
    """Strong and weak points."""
    cohort, fewest = study.strong[0].cohort, study.strong[0].ranks
    points = dict.fromkeys((number, size) for number in ranks for size in (cohort, max(cohort * number // fewest, 1)))
    found = []
    for number, size in points:
        print(f"simulation: {number} ranks, {size} clients", flush=True)
        found.append(simulate(predictor, number, size, directory / _SIMULATION))
    return found


def _play(
    place: LaunchSite,
    path: Path,
    overrides: Sequence[str],
    config: Config,
    predictor: Predictor,
    study: Study,
    ranks: int,
    directory: Path,
) -> LoneRank:
    """A weak point, as far as the population goes."""
    cohort = min(max(study.strong[0].cohort * ranks // study.strong[0].ranks, 1), config.federation.clients)
    return measure_lone_rank(place, path, overrides, ranks, predictor.network(ranks).local, cohort, directory / "alone")


def _lone_rank(lone: LoneRank, found: Fit, predictor: Predictor) -> str:
    section = lone_rank_section(lone, found.model, predictor.samples(lone.cohort), predictor.work)
    return f"## One rank of {lone.ranks:,}\n\n{section}"


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


def _write(
    directory: Path,
    text: str,
    study: Study,
    results: Results,
    found: Fit,
    predictor: Predictor,
    predicted: Sequence[int],
    simulated: Sequence[Simulated],
) -> list[Path]:
    """The report, its tables, the model, a timeline and the plots; returns all that was written."""
    write_text(directory / "scaling.md", text + "\n")
    write_text(directory / "scaling.csv", comma_separated(results))
    write_json(directory / "cost_model.json", _finite(asdict(found.model)))
    _write_timeline(study.strong[-1], directory)
    plots = save_plots(study, results, directory)
    plots += save_prediction_plots(predictor, study.strong[0].cohort, predicted, simulated, directory)
    names = ("scaling.md", "scaling.csv", "cost_model.json", "timeline.json", *(plot.name for plot in plots))
    return [directory / name for name in names]


def _write_timeline(point: Point, directory: Path) -> None:
    """The trace of all ranks of one run in a single file, which Perfetto opens."""
    events = read_timelines(directory / POINTS / f"{point.name}_0")
    write_text(directory / "timeline.json", json.dumps({"traceEvents": events}) + "\n")


def _head(path: Path, overrides: Sequence[str], place: LaunchSite) -> str:
    return (
        f"{datetime.date.today().isoformat()}, {place}, {processor_name()}, {os.cpu_count()} processors a node; "
        f"fedmef_dist {VERSION}, torch {torch.__version__}, Python {platform.python_version()}.\n\n"
        f"Configuration: {markdown_code(' '.join([path.name, *overrides]))}."
    )


def _finite(tree: Any) -> Any:
    """A tree of plain values for JSON: null for the bandwidth of a link on which nothing takes time."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not isfinite(tree) else tree
