"""Stops a run that no longer improves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class EarlyStopping(Callback):
    """Ends the run when a metric has not improved in so many measurements; rounds that lack it do not count.

    Attributes:
        monitor: key of metrics.jsonl.
        patience: measurements in a row without an improvement after which the run ends.
        mode: whether the metric is to become as large or as small as can be.
        min_delta: an improvement is larger than this.

    Raises:
        UserError: an option is out of its range.
    """

    monitor: str = "eval/accuracy"
    patience: int = 5
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        for name, wrong, range in (
            ("patience", self.patience < 1, "1 or more"),
            ("mode", self.mode not in ("max", "min"), "max or min"),
            ("min_delta", not 0 <= self.min_delta < float("inf"), "0 or more"),
        ):
            if wrong:
                raise UserError(f"{name} is {getattr(self, name)!r}", where="early_stopping", mend=f"give {range}")

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """Compare the metric with the best so far. A value that is not finite is no improvement."""
        if self.monitor not in metrics:
            return
        value = float(metrics[self.monitor])
        if self._improves(value):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = "finite" if self.best is None else f"better than {self.best:.6g}"
            control.stop(f"{self.monitor} was not {best} in {self.waited} measurements")

    def _improves(self, value: float) -> bool:
        if not abs(value) < float("inf"):
            return False
        sign = 1 if self.mode == "max" else -1
        return self.best is None or sign * (value - self.best) > self.min_delta

    def state(self) -> dict[str, Any]:
        """The best value so far, and for how many measurements it has been."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.best, self.waited = state["best"], state["waited"]
