"""A method of one's own: FedMef, but a share of what grows is drawn at random instead of by gradient."""

from collections.abc import Mapping

import torch
from pydantic import Field

from fedmef_dist.api import FedMef, FedMefSettings, GrowthOrder, RoundPlan, Sums, strongest_inactive, torch_generator


class RandomGrowthSettings(FedMefSettings):
    """FedMef's keys and one more."""

    random_share: float = Field(1.0, ge=0, le=1, description="share of the grown weights that is drawn at random")


class RandomGrowth(FedMef):
    """Explores where the gradient does not look yet, as SET does (Mocanu et al. 2018, arXiv 1707.04780)."""

    Settings = RandomGrowthSettings
    settings: RandomGrowthSettings

    def next_mask(self, plan: RoundPlan, values: torch.Tensor, sums: Mapping[str, Sums]) -> torch.Tensor:
        """Prunes the marked weights; grows some at random, the others by aggregated gradient."""
        assert plan.marked is not None
        generator = torch_generator(self.context.seed, "random growth", plan.round)
        at_random = [int(self.settings.random_share * count) for count in plan.swap_counts]
        scores = sums["gradient"].mean().abs()
        drawn = strongest_inactive(self.space, torch.rand(len(scores), generator=generator).to(scores), at_random)
        scores[drawn] = -1  # behind every other inactive weight
        rest = [count - random for count, random in zip(plan.swap_counts, at_random, strict=True)]
        order = GrowthOrder(self.context.seed, plan.round).of()  # of weights with equal scores
        return self.space.mask.swapped(
            plan.marked, torch.cat([drawn, strongest_inactive(self.space, scores, rest, order)])
        )
