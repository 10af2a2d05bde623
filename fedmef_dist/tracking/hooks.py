"""What a callback is, and what it may decide."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.base.text import printable
from fedmef_dist.tracking.tracker import Metrics


class Control:
    """What a callback knows of the run beside its metrics, and how it acts on it; one object for all of a run.

    Attributes:
        run_dir: the run's directory.
        config: the resolved configuration as plain values.
        round: the newest round that has begun; 0 before the first.
        stop_reason: why the run is to end; None: it goes on.
        kept_round: the round whose checkpoint is kept beside the newest ones; None: no such.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.run_dir, self.config = run_dir, config
        self.round = 0
        self.stop_reason: str | None = None
        self.kept_round: int | None = None
        self._rate_factor = 1.0

    def stop(self, reason: str) -> None:
        """End the run, with a checkpoint and a summary, behind the round that is going on; the first reason stays."""
        if self.stop_reason is None:
            self.stop_reason = printable(str(reason))

    def keep_checkpoint(self) -> None:
        """Save the round that has just ended, and keep that checkpoint in the place of the one that was kept so far."""
        self.kept_round = self.round

    @property
    def rate_factor(self) -> float:
        """What the clients' learning rate is multiplied by in each round from the next decision on; 1 at first."""
        return self._rate_factor

    @rate_factor.setter
    def rate_factor(self, factor: float) -> None:
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"a factor on the learning rate is above 0 and finite, not {factor}")
        self._rate_factor = float(factor)


class Callback:
    """Looks at a run, on rank 0. A subclass defines the hooks that it needs.

    What a hook decides through ``control`` holds on every rank. An exception in a hook ends the run: unlike a tracker,
    a callback has a say in the result.
    """

    def on_start(self, control: Control) -> None:
        """The run starts, or goes on from a checkpoint."""

    def on_round_start(self, control: Control) -> None:
        """A round begins: ``control.round``. ``control.rate_factor`` holds in it already."""

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """A round has ended; ``metrics`` are what metrics.jsonl gets of it."""

    def on_evaluate(self, metrics: Metrics, control: Control) -> None:
        """Called before :meth:`on_round_end` where the round was evaluated: ``metrics`` have ``eval/accuracy``."""

    def on_checkpoint(self, control: Control) -> None:
        """A checkpoint of the round has been written."""

    def on_end(self, control: Control) -> None:
        """The run has done its last round or was stopped by a callback; not where a signal stopped it early."""

    def state(self) -> dict[str, Any]:
        """What it remembers from round to round, for the checkpoint: plain values that JSON has."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
