"""Ends a run that has used up its time."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking.hooks import Callback, Control
from fedmef_dist.tracking.tracker import Metrics


@dataclass
class TimeBudget(Callback):
    """Ends the run behind the last round that fits: another one as long as the longest so far would go beyond.

    The clock is rank 0's. What a run has used up counts on when it goes on; the time between two processes does not.

    Attributes:
        seconds: for all rounds, evaluations and checkpoints in them included.
        clock: seconds, always forward.

    Raises:
        UserError: there is no time.
    """

    name: ClassVar[str] = "time_budget"

    seconds: float
    clock: Callable[[], float] = field(default=time.monotonic, init=False, repr=False)
    spent: float = field(default=0.0, init=False)
    longest: float = field(default=0.0, init=False)
    since: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.seconds, int | float) and 0 < self.seconds < math.inf):
            raise UserError(f"seconds is {self.seconds!r}", where=self.name, mend="give a number above 0")

    def on_start(self, control: Control) -> None:
        """The clock runs from here."""
        self.since = self.clock()

    def on_round_end(self, metrics: Metrics, control: Control) -> None:
        """Read the clock."""
        now = self.clock()
        taken, self.since = now - self.since, now
        self.spent += taken
        self.longest = max(self.longest, taken)
        if self.spent + self.longest > self.seconds:
            control.stop(f"{self.spent:.0f} of {self.seconds:g} s are spent, and a round takes {self.longest:.0f} s")

    def state(self) -> dict[str, Any]:
        """What is spent, and the longest round."""
        return {"spent": self.spent, "longest": self.longest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""
        self.spent, self.longest = float(state["spent"]), float(state["longest"])
