"""Where a run's measurements go: metrics.jsonl always; the console, Weights & Biases and guests as configured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmef_dist.cluster.progress import CohortProgress
from fedmef_dist.tracking.console import console_tracker
from fedmef_dist.tracking.guest import open_guests
from fedmef_dist.tracking.jsonl import JsonlTracker
from fedmef_dist.tracking.lines import METRICS
from fedmef_dist.tracking.settings import TrackingSettings, WandbSettings
from fedmef_dist.tracking.tracker import Metrics, Tracker, Trackers
from fedmef_dist.tracking.wandb import WandbTracker

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
) -> Tracker:
    """All trackers of a run as one, for rank 0.

    ``resume_round`` is the last round that the loaded checkpoint has done (None: a fresh run), ``state`` what
    ``Tracker.state`` gave when it was saved. ``cohort`` tells the console how far a round is, ``opening`` is what it
    shows first.

    Raises UserError where metrics.jsonl is not what the checkpoint knows, or a guest cannot be had.
    """
    trackers: list[Tracker] = [JsonlTracker(run_dir / METRICS, resume_round, state)]
    if settings.wandb.mode != "disabled":
        trackers.append(WandbTracker(settings.wandb, run_dir, config, state))
    trackers += open_guests(settings.trackers, run_dir, config, None if resume_round is None else state)
    if settings.console:
        trackers.append(console_tracker(total_rounds, resume_round, cohort, opening))
    return Trackers(trackers)
