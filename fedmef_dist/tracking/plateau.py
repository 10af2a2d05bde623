"""Lowers the clients' learning rate on a plateau."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedmef_dist.tracking.hooks import Control
from fedmef_dist.tracking.monitor import Monitor
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class ReduceRateOnPlateau(Monitor):
    """Multiplies the learning rate when a metric has not improved in so many measurements, and waits anew.

    Attributes:
        factor: what the rate is multiplied by each time.
        patience: measurements in a row without an improvement.
        least: below this share of the schedule's rate it does not fall.

    The others are those of :class:`Monitor`.
    """

    name: ClassVar[str] = "reduce_rate_on_plateau"

    monitor: str = "eval/loss"
    mode: Literal["max", "min"] = "min"
    factor: float = 0.5
    patience: int = 5
    least: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("factor", isinstance(self.factor, int | float) and 0 < self.factor < 1, "a number between 0 and 1")
        self.check("patience", isinstance(self.patience, int) and self.patience >= 1, "a whole number, 1 or more")
        self.check("least", isinstance(self.least, int | float) and 0 < self.least <= 1, "a number above 0, at most 1")

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """Compare the metric with the best so far."""
        if self.improves(metrics) is False and self.waited >= self.patience:
            # Another callback may have gone below what is the least here: that is not taken back.
            control.rate_factor = min(control.rate_factor, max(control.rate_factor * self.factor, self.least))
            self.waited = 0
