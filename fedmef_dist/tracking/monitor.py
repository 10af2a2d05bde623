"""What callbacks share that look at one metric: whether it has become better than ever before."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.hooks import Callback
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class Monitor(Callback):
    """Knows the best value of a metric so far, and for how many measurements it has been the best.

    Attributes:
        monitor: key of metrics.jsonl; rounds that lack it do not count.
        mode: whether the metric is to become as large or as small as can be.
        min_delta: an improvement is larger than this.

    Raises:
        UserError: an option is out of its range.
    """

    name: ClassVar[str] = "monitor"

    monitor: str = "eval/accuracy"
    mode: Literal["max", "min"] = "max"
    min_delta: float = 0.0
    best: float | None = field(default=None, init=False)
    waited: int = field(default=0, init=False)
    _told: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.check("monitor", isinstance(self.monitor, str), "the name of a metric")
        self.check("mode", self.mode in ("max", "min"), "max or min")
        self.check("min_delta", isinstance(self.min_delta, int | float) and 0 <= self.min_delta < math.inf, "0 or more")

    def check(self, option: str, fits: bool, range: str) -> None:
        """Raises UserError where an option does not fit; ``range`` is what does."""
        if not fits:
            raise UserError(f"{option} is {getattr(self, option)!r}", where=self.name, mend=f"give {range}")

    def improves(self, metrics: Metrics) -> bool | None:
        """Whether the round's value is the best so far, by more than ``min_delta``; None where it was not measured.

        A value that is not finite is no improvement. Raises UserError where it is a text, such as a digest.
        """
        if self.monitor not in metrics:
            self._tell_of_absence(metrics)
            return None
        measured = metrics[self.monitor]
        self.check("monitor", not isinstance(measured, str), "a metric that is a number")
        value = float(measured)
        sign = 1 if self.mode == "max" else -1
        better = math.isfinite(value) and (self.best is None or sign * (value - self.best) > self.min_delta)
        if better:
            self.best = value
        self.waited = 0 if better else self.waited + 1
        return better

    def _tell_of_absence(self, metrics: Metrics) -> None:
        """Says once, at an evaluation, that the metric has not been measured so far: its name may be wrong."""
        if self.best is None and not self.waited and not self._told and "eval/accuracy" in metrics:
            self._told = True
            near = difflib.get_close_matches(self.monitor, metrics, n=1)
            mend = f"; did you mean {near[0]}?" if near else ""
            tell(f"note: {self.name} looks at {self.monitor}, which has not been measured so far{mend}")

    def state(self) -> dict[str, Any]:
        """The best value so far, and for how many measurements it has been."""
        return {"best": self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.best, self.waited = state["best"], state["waited"]
