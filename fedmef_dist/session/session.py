"""A run from the outside: meet the other ranks, claim the directory, simulate, summarise."""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmef_dist.base.atomic import write_json
from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.base.guests import lent
from fedmef_dist.base.names import plain_path
from fedmef_dist.base.notices import tell
from fedmef_dist.base.version import VERSION
from fedmef_dist.cluster.ending import give_up_output
from fedmef_dist.cluster.environment import detect, nodes_of
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.gpu import versions
from fedmef_dist.cluster.group import STOPPED_EARLY, Group, open_group
from fedmef_dist.cluster.interruption import Interruption, listening
from fedmef_dist.config import Config, load_config, to_tree
from fedmef_dist.data.checks import notices
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.text import TextDataset
from fedmef_dist.methods.base import Method
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.runs.directory import Resume, claim, round_to_resume, write_configuration
from fedmef_dist.runs.owner import Owner, Progress
from fedmef_dist.runs.snapshot import take
from fedmef_dist.session.beginning import Beginning, begin
from fedmef_dist.session.caller import caller_as_before
from fedmef_dist.session.loan import Loan, share_weights
from fedmef_dist.session.memory import RunMemory
from fedmef_dist.session.opening import opening_lines
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking import Tracker, open_trackers
from fedmef_dist.tracking.callbacks import Callbacks
from fedmef_dist.tracking.console import Ticker
from fedmef_dist.tracking.lines import METRICS, head_in, parse_rounds
from fedmef_dist.tracking.logs import rank_log, shown_events
from fedmef_dist.tracking.settings import RUN_ID, SWEEP_ID
from fedmef_dist.tracking.timeline import Timeline
from fedmef_dist.tracking.tracker import Trackers
from fedmef_dist.tracking.wandb_nodes import open_node

_LOG = logging.getLogger(__name__)
_SECONDS_UNTIL_AN_ANSWER = 0.5


@dataclass(frozen=True)
class Summary:
    """A finished run: the content of its summary.json, and where it lies. Shown, it is one line or a table."""

    run_dir: Path
    values: dict[str, Any]

    def __str__(self) -> str:
        """Rounds, accuracy, time, digest and directory in one line."""
        values = self.values
        accuracy = values["eval/accuracy_last"]  # a callback may stop a run before anything is evaluated
        rounds = "1 round" if values["rounds"] == 1 else f"{values['rounds']} rounds"
        return (
            f"{rounds}, accuracy {'not measured' if accuracy is None else f'{accuracy:.4f}'}, "
            f"{values['time/total']:.1f} s, digest {values['model/digest'][:16]}, results in {self.run_dir}"
        )

    def _repr_html_(self) -> str:
        """The same for a notebook, and below it every value."""
        cells = ((escape(key), escape(str(value))) for key, value in self.values.items())
        rows = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in cells)
        return f"<p>{escape(str(self))}</p><details><summary>summary.json</summary><table>{rows}</table></details>"


def run_command(
    path: Path,
    overrides: list[str],
    run_dir: Path | None,
    resume: Resume,
    *,
    quiet: bool = False,
    verbose: bool = False,
) -> None:
    """The command ``run``: as :func:`run`, with errors shown once and as exit status.

    ``quiet`` leaves out the progress and the closing line, ``verbose`` also shows the events of rank 0's log.
    """
    environment = detect(os.environ)
    with listening(ends_process=True) as interruption, ends_together(environment):
        config = load_config(path, [*overrides, *(["tracking.console=false"] if quiet else [])])
        with open_group(environment, config.runtime) as group, ends_together(group):
            group.watch.ends_process = True
            with shown_events() if verbose and group.rank == 0 else nullcontext():
                summary = simulate(config, group, run_dir or default_run_dir(config, os.environ), resume, interruption)
            if group.rank == 0 and not quiet:
                try:
                    print(summary, flush=True)
                except OSError:  # a closed pipe: the files have it all
                    give_up_output()


def run(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    resume: Resume = "auto",
    method: type[Method[Any]] | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    dataset: Dataset | TextDataset | None = None,
    trackers: Sequence[Any] = (),
    callbacks: Sequence[Any] = (),
) -> Summary:
    """One simulation from Python, under any launcher; it leaves threads, environment and signal handlers as they were.

    Objects take the place of what the configuration names, or join it (trackers and callbacks); config.yaml records
    their names. Under a launcher every rank gives its own, and all must be alike; of a module rank 0's weights count.

    Args:
        config: the run.
        run_dir: where rank 0 writes; default: ``runs/<name>``.
        resume: ``auto`` goes on from a checkpoint where there is one, ``must`` needs one, ``never`` an empty directory.
        method: a class. Keys that the configuration gives and its settings have stay, the others are dropped with a
            notice.
        model: a class or callable ``(*, classes, shape, **options)``, or a module, which is copied and whose weights
            the run starts from.
        dataset: images or text.
        trackers: objects with the methods of :class:`Tracker`, or classes, called with ``run_dir`` and ``config``.
        callbacks: objects of subclasses of :class:`Callback`, or such classes.

    Raises:
        UserError: something in the configuration, the data or the run directory is wrong.
        SystemExit: USR1, USR2, TERM, INT or HUP stopped the run early, with status 75 and a checkpoint.
    """
    with caller_as_before(), listening() as interruption, open_group(detect(os.environ), config.runtime) as group:
        loan = Loan(method, share_weights(model, group), dataset, trackers, callbacks)
        with lent(loan.objects):
            settled = loan.apply(config)
            return simulate(settled, group, Path(run_dir or default_run_dir(config, os.environ)), resume, interruption)


def default_run_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """``runs/<name>``; for each trial of `wandb agent` one of its own, with the id that the agent gives."""
    trial = environ.get(RUN_ID) if environ.get(SWEEP_ID) else None
    return Path("runs") / (f"{config.name}-{trial}" if trial else config.name)


def simulate(
    config: Config, group: Group, run_dir: Path, resume: Resume, interruption: Interruption | None = None
) -> Summary:
    """One simulation on an open group; rank 0 alone reads and writes ``run_dir``, but for the logs.

    Raises UserError, or SystemExit with status 75 where a signal stopped it early.
    """
    plain_path(run_dir, "the run directory")
    timeline = Timeline(run_dir if config.tracking.timeline else None, group.rank)
    callbacks = Callbacks(config.callbacks, group, run_dir, to_tree(config))
    simulation = Simulation(config, group, interruption, timeline, callbacks)
    if group.rank == 0:
        for line in notices(simulation.dataset):
            tell(line)
    store = CheckpointStore(run_dir, config.checkpoint.keep)
    with _owning(simulation, run_dir, resume) as owner:
        beginning = begin(simulation, store, resume)
        if owner is not None:
            owner.begin(simulation.round)
            if caution := simulation.method.caution():
                tell(f"note: {caution}")
            store.make_sure = owner.look
            store.forget_later(simulation.round)  # of a process that lived on when the run was requeued
            write_configuration(run_dir, to_tree(config))
            beginning.keep(store)
        group.barrier()  # the logs of all ranks lie in the directory that rank 0 claims
        with rank_log(run_dir, group):
            summary = _play(simulation, store, run_dir, beginning, owner)
    return Summary(run_dir, summary)


@contextmanager
def _owning(simulation: Simulation, run_dir: Path, resume: Resume) -> Iterator[Owner | None]:
    """Rank 0 owns the directory from before it reads what is there until the last file is written."""
    if simulation.group.rank:
        yield None
        return
    config = simulation.config
    round_to_resume(run_dir, to_tree(config), resume, config.begins_as)  # refuses before anything is written
    with claim(run_dir, config.federation.rounds) as owner:
        yield owner


def _play(
    simulation: Simulation, store: CheckpointStore, run_dir: Path, beginning: Beginning, owner: Owner | None
) -> dict[str, Any]:
    """The rounds that are left, and the summary; ``beginning`` is what the simulation goes on from."""
    checkpoint = beginning.checkpoint
    resumed, state = (checkpoint.state["round"], checkpoint.state["tracker"]) if checkpoint is not None else (None, {})
    if resumed is not None:
        _LOG.info("goes on from the checkpoint of round %d", resumed)
    memory = None
    if owner is not None:
        memory = RunMemory(simulation, parse_rounds(beginning.done, run_dir / METRICS))
    opening = opening_lines(simulation, run_dir, memory) if memory is not None else []
    with _tracking(simulation, run_dir, resumed, state, owner, opening) as tracker:
        if memory is not None:
            simulation.more_metrics = memory.news
        with simulation.group.watch.progress.expected(), _answering(simulation):
            simulation.run(tracker.log, lambda: _save(simulation, store, tracker))
        head = head_in(tracker.state())
        summary = _summary(simulation, memory) | (head.summary() if head is not None else {})
        if not simulation.stopped_early:
            tracker.finish(summary)
    if simulation.stopped_early:
        _stop_early(simulation)
    if owner is not None:
        owner.check()
        _write_summary(run_dir, summary)
        owner.finished = True
    simulation.group.barrier()
    simulation.grace.interruption.over = True
    return summary


@contextmanager
def _answering(simulation: Simulation) -> Iterator[None]:
    """Rank 0 says that a signal was heard, where the round that is going on keeps the run from ending soon."""
    grace, told = simulation.grace, False

    def look() -> None:
        nonlocal told
        if grace.asked and not told:
            told = True
            within = f"within {grace.seconds:g} s (checkpoint.grace)"
            tell(f"asked to stop: this round is finished first, {within}, or dropped; Ctrl-C once more ends at once")

    ticker = Ticker(look, _SECONDS_UNTIL_AN_ANSWER)
    if simulation.group.rank == 0:
        ticker.start()
    try:
        yield
    finally:
        ticker.stop()


def _save(simulation: Simulation, store: CheckpointStore, tracker: Tracker) -> bool:
    """Every rank gives what it holds; rank 0 writes it, unless that round is saved already. Whether it has."""
    checkpoint = take(simulation.round, simulation.parts, tracker.state())
    store.kept_round = simulation.callbacks.kept_round
    new = simulation.group.rank == 0 and simulation.round > store.last
    written = new and store.try_save(checkpoint)
    if written:
        tracker.saved(store.newest)
    return written


def _write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    path = run_dir / "summary.json"
    try:
        write_json(path, summary)
    except FileNotFoundError:
        raise FilesLostError(f"the run directory {run_dir} was removed while the run was writing into it") from None
    except OSError as error:
        raise UserError(
            f"all rounds are done, but the summary cannot be written: {error.strerror}",
            where=str(path),
            mend="make room there and start again: the run goes on from its last checkpoint",
        ) from None


def _stop_early(simulation: Simulation) -> None:
    """All ranks leave together: the first to go would make the launcher end one that is still writing."""
    config, done = simulation.config, simulation.round
    simulation.group.barrier()
    simulation.grace.interruption.over = True
    if simulation.group.rank == 0:
        rounds = config.federation.rounds
        tell(f"stopped by a signal after {done} of {rounds} rounds; the same command goes on from there")
    raise SystemExit(STOPPED_EARLY)


@contextmanager
def _tracking(
    simulation: Simulation,
    run_dir: Path,
    resumed: int | None,
    state: dict[str, str],
    owner: Owner | None,
    opening: Sequence[str],
) -> Iterator[Tracker]:
    config = simulation.config
    tracker: Tracker = open_node(config.tracking.wandb, run_dir, simulation.group) or _NoTracker()
    if owner is not None:
        opened = open_trackers(
            config.tracking,
            run_dir,
            to_tree(config),
            config.federation.rounds,
            resumed,
            state,
            cohort=simulation.group.watch.cohort,
            opening=opening,
            details=lambda: histogram_data(simulation),
            nodes=nodes_of(simulation.group.environment),
        )
        tracker = Trackers([opened, Progress(owner)])
    try:
        yield tracker
    finally:
        tracker.close()


def histogram_data(simulation: Simulation) -> dict[str, np.ndarray]:
    """What histograms are made of: the losses of the round's clients, the densities of the layers."""
    space, losses = simulation.space, simulation.client_losses
    sizes = zip(space.layers, space.layer_counts(), strict=True)
    densities = {"layer_density": np.array([count / layer.size for layer, count in sizes])}
    return densities if losses is None else {"client_loss": losses, **densities}


class _NoTracker(Tracker):
    """The tracker of every rank but 0."""

    def log(self, metrics: Any) -> None:
        """Does nothing."""


def _summary(simulation: Simulation, memory: RunMemory | None) -> dict[str, Any]:
    totals, group = simulation.totals, simulation.group
    last = totals.last
    return {
        "eval/accuracy_last": last.get("eval/accuracy"),
        "eval/accuracy_best": totals.best_accuracy if "eval/accuracy" in last else None,
        "eval/loss_last": last.get("eval/loss"),
        **({"eval/perplexity_last": last["eval/perplexity"]} if "eval/perplexity" in last else {}),
        "rounds": simulation.round,
        **({"stopped": simulation.callbacks.stop_reason} if simulation.callbacks.stop_reason is not None else {}),
        **({"checkpoint/kept_round": kept} if (kept := simulation.callbacks.kept_round) is not None else {}),
        "sparsity/density": simulation.space.density,
        "wire/total_bytes": totals.wire_bytes,
        "flops/total": totals.flops,
        **(memory.metrics() | memory.dense(totals.models_sent) if memory is not None else {}),
        "time/total": totals.seconds,
        "model/digest": simulation.server.digest(),
        **({"data/digest": digest} if (digest := getattr(simulation.dataset, "digest", None)) else {}),
        "launcher": group.environment.launcher,
        "world_size": group.world_size,
        "threads": torch.get_num_threads(),
        "device": str(group.device),
        "versions": {
            "fedmef_dist": VERSION,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **versions(group.device),
        },
    }
