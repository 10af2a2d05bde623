"""When the mask is adjusted, and how much of it."""

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class AdjustmentSchedule:
    """Cosine schedule of the share of a layer's weights that one adjustment swaps (FedMef, section 3).

    Attributes:
        every: rounds between two adjustments.
        until: last round of the schedule, R_stop.
        rate: alpha_adj, the share at round 0.
    """

    every: int
    until: int
    rate: float

    def share(self, round: int) -> float:
        """zeta_r = rate / 2 * (1 + cos(pi * r / until)); 0 from ``until`` on."""
        if round >= self.until:
            return 0.0
        return self.rate / 2 * (1 + cos(pi * round / self.until))

    def adjusts(self, round: int) -> bool:
        """Whether the round ends with an adjustment. Where the share is 0 there is nothing to adjust."""
        return round > 0 and round % self.every == 0 and self.share(round) > 0
