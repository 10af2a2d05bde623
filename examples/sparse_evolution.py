"""A whole method in forty lines: SET (Mocanu et al. 2018, arXiv 1707.04780), with the server as the one who evolves."""

from collections.abc import Mapping

import torch

from fedmef_dist.api import (
    RandomStart,
    RandomStartSettings,
    RoundPlan,
    Sums,
    SwappingSettings,
    strongest_inactive,
    swap_counts,
    torch_generator,
    weakest,
)


class EvolutionSettings(SwappingSettings, RandomStartSettings):
    """Keys: density, allocation, first_mask, adjust_every, adjust_until, adjust_rate."""


class SparseEvolution(RandomStart[EvolutionSettings]):
    """From a random mask; every few rounds the smallest weights give way to random ones."""

    Settings = EvolutionSettings

    def plan(self, round: int, values: torch.Tensor) -> RoundPlan:
        """How many weights of each layer are swapped at the end of this round."""
        schedule = self.settings.schedule()
        if not schedule.adjusts(round):
            return RoundPlan(round, values)
        counts = swap_counts(self.space.layers, self.counts, schedule.share(round))
        return RoundPlan(round, values, adjusts=True, swap_counts=counts)

    def next_mask(self, plan: RoundPlan, values: torch.Tensor, sums: Mapping[str, Sums]) -> torch.Tensor:
        """The server's choice, from the clients' averaged weights."""
        pruned = weakest(self.space, values[: self.space.n_prunable].abs(), plan.swap_counts)
        generator = torch_generator(self.context.seed, "evolution", plan.round)
        scores = torch.rand(self.space.n_prunable, generator=generator).to(values)
        return self.space.mask.swapped(pruned, strongest_inactive(self.space, scores, plan.swap_counts))
