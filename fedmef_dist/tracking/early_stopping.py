"""Stops a run that no longer improves."""

from dataclasses import dataclass
from typing import ClassVar

from fedmef_dist.tracking.hooks import Control
from fedmef_dist.tracking.monitor import Monitor
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class EarlyStopping(Monitor):
    """Ends the run when a metric has not improved in so many measurements.

    Attributes:
        patience: measurements in a row without an improvement after which the run ends.

    The others are those of :class:`Monitor`.
    """

    name: ClassVar[str] = "early_stopping"

    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("patience", isinstance(self.patience, int) and self.patience >= 1, "a whole number, 1 or more")

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """Compare the metric with the best so far."""
        if self.improves(metrics) is False and self.waited >= self.patience:
            best = "finite" if self.best is None else f"better than {self.best:.6g}"
            control.stop(f"{self.monitor} was not {best} in {self.waited} measurements")
