"""Keeps the checkpoint of the best round, whatever newer ones come."""

from dataclasses import dataclass
from typing import ClassVar

from fedmef_dist.tracking.hooks import Control
from fedmef_dist.tracking.monitor import Monitor
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class KeepBest(Monitor):
    """Saves each round in which a metric is better than ever before, and keeps that checkpoint until a better one.

    The attributes are those of :class:`Monitor`.
    """

    name: ClassVar[str] = "keep_best"

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """Compare the metric with the best so far."""
        if self.improves(metrics):
            control.keep_checkpoint()
