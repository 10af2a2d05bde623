"""Adaptive batch normalisation selection: clients choose among first masks without training (FedTiny, section 3.2).

A mask's loss says little while the statistics of batch normalisation are those of another network. So the clients first
measure them under each candidate, and the loss is taken with their average.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.layers.activation_pruning import forget_thresholds
from fedmef_dist.layers.batchnorm import normalise_by_batch
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.allocation import share_out
from fedmef_dist.sums.exact_sum import LIMIT
from fedmef_dist.wire.encodings import Positions
from fedmef_dist.wire.ranges import prunable, small
from fedmef_dist.wire.traffic import Broadcast, whole

_SPREAD = 2.0
_WORST = LIMIT / 2  # a loss that is not finite, or beyond it, counts as this


def candidate_counts(
    space: ParameterSpace, counts: Sequence[int], candidates: int, generator: np.random.Generator
) -> list[list[int]]:
    """Different ways to share out the same number of weights to the layers; the first is ``counts`` itself.

    Each layer's count is multiplied with a factor between 1/2 and 2, uniform in its logarithm; then all are scaled to
    the exact total. A layer that has weights keeps at least one, and filters keep their floors.

    Args:
        space: the parameter space.
        counts: active weights of each layer.
        candidates: how many, at least 1.
        generator: of the factors.
    """
    sizes = [layer.size for layer in space.layers]
    least = [min(count, layer.floor) for layer, count in zip(space.layers, counts, strict=True)]
    found = [list(counts)]
    while len(found) < candidates:
        factors = _SPREAD ** generator.uniform(-1, 1, len(sizes))
        wanted = np.maximum(counts, 1) * factors
        found.append(share_out(wanted.tolist(), sum(counts), least, sizes))
    return found


class CandidateSelection:
    """Asks the clients of the preparation which of the masks suits their data best.

    Args:
        space: the parameter space with a full mask.
        masks: the candidates, bool (n_prunable,) each.
        preparation: the clients; what they send and compute is added to its costs.
    """

    def __init__(self, space: ParameterSpace, masks: Sequence[Tensor], preparation: Preparation) -> None:
        self.space, self.preparation = space, preparation
        self.masks = [space.mask.next(active) for active in masks]
        self.model = preparation.client.model
        self.norms = normalise_by_batch(self.model)
        kept = space.total - space.n_parameters if self.norms else 0
        self.statistics = whole("statistics", small(len(masks) * kept))
        self.losses = whole("losses", small(len(masks)))

    def choose(self) -> Tensor:
        """The candidate of lowest weighted loss, the first of several; its statistics become those of the first state.

        Raises:
            UserError: no client's statistics are finite.
        """
        preparation, values = self.preparation, self.preparation.values
        self._send_candidates()
        if preparation.rehearses:
            preparation.count_collection(self.statistics)
            preparation.count_collection(self.losses)
            self._send_statistics(values.new_ones(self.statistics.over.size))
            return self.masks[0].active
        full = self.space.mask
        statistics = [values[self.space.n_parameters :]] * len(self.masks)
        if self.norms:
            found = preparation.average(self.statistics, self._measure_all)
            statistics = list(self._send_statistics(found).view(len(self.masks), -1))
        losses = preparation.average(self.losses, lambda client: self._losses(client, statistics))
        self.space.set_mask(full)
        best = int(losses.argmin())
        values[self.space.n_parameters :] = statistics[best]
        return self.masks[best].active

    def _send_candidates(self) -> None:
        """The dense start weights and every candidate's positions go down; each candidate is passed through once for
        its statistics, and once for its loss.
        """
        cohort, preparation, space = self.preparation.cohort, self.preparation, self.space
        preparation.send_model(space.mask, len(cohort.asked))
        for number, mask in enumerate(self.masks):
            sent = Broadcast(f"candidate {number}", prunable(space), mask.active, Positions())
            preparation.send(sent, len(cohort.asked))
        passes = 2 if self.norms else 1
        samples = passes * int(cohort.samples.sum())
        preparation.costs.forwards += [(space.layer_counts(mask), samples) for mask in self.masks]

    def _send_statistics(self, found: Tensor) -> Tensor:
        """Everybody's statistics go down to those who take the losses."""
        sent = Broadcast("statistics", self.statistics.over, found)
        return self.preparation.send(sent, len(self.preparation.cohort.clients))

    def _load(self, mask: Mask) -> None:
        self.space.load(self.preparation.values)
        self.space.set_mask(mask)
        forget_thresholds(self.model.modules())

    def _measure_all(self, client: int) -> Tensor:
        return torch.cat([self._measure(client, mask) for mask in self.masks])

    @torch.no_grad()
    def _measure(self, client: int, mask: Mask) -> Tensor:
        """Statistics of one client's data under a mask, each the mean over its batches, float32 (statistics,)."""
        self._load(mask)
        normalise_by_batch(self.model)
        momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.reset_running_stats()
            norm.momentum = None
        for batch in self.preparation.client_batches(client):
            self.preparation.client.loss(batch)
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
        return self.space.values[self.space.n_parameters :].clone()

    @torch.no_grad()
    def _losses(self, client: int, statistics: Sequence[Tensor]) -> Tensor:
        """One client's loss under each candidate with these statistics, float32 (candidates,)."""
        losses = []
        for mask, measured in zip(self.masks, statistics, strict=True):
            self._load(mask)
            self.space.values[self.space.n_parameters :] = measured
            self.model.eval()
            losses.append(self._mean_loss(client))
        return torch.stack(losses).nan_to_num(_WORST, _WORST).clamp(max=_WORST)

    def _mean_loss(self, client: int) -> Tensor:
        total, samples = torch.zeros((), device=self.space.values.device), 0
        for batch in self.preparation.client_batches(client):
            total += self.preparation.client.loss(batch) * len(batch[1])
            samples += len(batch[1])
        return total / samples
