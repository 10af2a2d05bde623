"""Where a run's measurements go: metrics.jsonl always; the console, Weights & Biases and guests as configured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.progress import CohortProgress
from fedmef_dist.tracking.console import console_tracker
from fedmef_dist.tracking.guest import guarded, open_guests
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.lines import METRICS
from fedmef_dist.tracking.settings import TrackingSettings, WandbSettings
from fedmef_dist.tracking.tensorboard import TensorboardTracker
from fedmef_dist.tracking.tracker import Metrics, Tracker, Trackers
from fedmef_dist.tracking.wandb import Details, WandbTracker

__all__ = ["METRICS", "Metrics", "Tracker", "TrackingSettings", "WandbSettings", "open_trackers"]


def open_trackers(
    settings: TrackingSettings,
    run_dir: Path,
    config: Mapping[str, Any],
    total_rounds: int,
    resume_round: int | None,
    state: Mapping[str, str],
    *,
    cohort: CohortProgress | None = None,
    opening: Sequence[str] = (),
    details: Details = dict,
    nodes: int = 1,
) -> Trackers:
    """All trackers of a run as one, for rank 0.

    Args:
        settings: section ``tracking``.
        run_dir: the run directory.
        config: the resolved configuration as plain values.
        total_rounds: of the run.
        resume_round: the last round that the loaded checkpoint has done; None: a fresh run.
        state: what :meth:`Tracker.state` gave when it was saved.
        cohort: tells the console how far a round is.
        opening: what the console shows first.
        details: what W&B makes histograms of, asked in each round.
        nodes: of the run.

    Raises:
        UserError: metrics.jsonl is not what the checkpoint knows, or a guest cannot be had.
    """
    done = resume_round or 0
    trackers: list[Tracker] = []
    try:
        trackers.append(JsonlTracker(run_dir / METRICS, resume_round, state))
        # Before W&B starts a run: wrong options of a guest end this one.
        for guest in open_guests(settings.trackers, run_dir, config, None if resume_round is None else state):
            trackers.append(guest)
        if settings.wandb.mode != "disabled":
            trackers.append(WandbTracker(settings.wandb, run_dir, config, done, details, nodes))
        if settings.tensorboard:
            trackers.append(guarded("tensorboard", lambda: TensorboardTracker(run_dir, done)))
        if settings.console:
            try:
                trackers.append(console_tracker(total_rounds, resume_round, cohort, opening))
            except OSError as error:
                tell(f"the console stopped: {error.strerror}; the run goes on")
    except BaseException:
        Trackers(trackers).close()
        raise
    return Trackers(trackers)
