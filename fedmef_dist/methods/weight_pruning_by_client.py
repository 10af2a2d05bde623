"""Pruning before the first round, on the data of a single client (PruneFL, section 3.2, arXiv 1909.12326)."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.plan import LocalWork, RoundPlan
from fedmef_dist.data.batches import Batch
from fedmef_dist.methods.preparation import Preparation, PreparationCosts
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.exact_sum import is_summable
from fedmef_dist.wire.traffic import Upload


class ClientPruning:
    """The client with the most samples (of several the first in the cohort) trains and adjusts the mask, several times.

    The first rank does it and tells the others, so that all start with the same bits on whatever processors they run.

    Args:
        space: the parameter space.
        work: what the client does in addition to SGD.
        adjust: (its state, float32 (total,), and what it would have sent) -> who is active next, bool (n_prunable,).
        adjustments: how often.
        steps: SGD steps before each of them.
        rate: the learning rate.
    """

    def __init__(
        self,
        space: ParameterSpace,
        work: LocalWork,
        adjust: Callable[[Tensor, dict[str, Upload]], Tensor],
        *,
        adjustments: int,
        steps: int,
        rate: float,
    ) -> None:
        self.space, self.work, self.adjust = space, work, adjust
        self.adjustments, self.steps, self.rate = adjustments, steps, rate

    def prune(self, preparation: Preparation, mask: Mask) -> Mask:
        """The last mask; the client's last state becomes ``preparation.values``.

        Without a client nothing changes; in a rehearsal nothing but the costs.

        Raises:
            UserError: the client's training leaves the range of finite numbers.
        """
        cohort, costs = preparation.cohort, preparation.costs
        if not len(cohort.clients):
            return mask
        client = int(cohort.clients[cohort.samples.argmax()])
        preparation.send_model(mask, receivers=1)
        bits, samples = mask.to_bits(), torch.zeros(1, dtype=torch.int64)
        if preparation.is_first_rank:
            bits = self._train(client, preparation, mask).to_bits()
            samples += costs.gradient_samples
        preparation.share(preparation.values, bits, samples)
        if not is_summable(preparation.values):
            raise UserError(
                f"client {client}, which prunes before the first round, ends with numbers that are not finite or too "
                "large",
                where="method.initial: client",
                mend="choose a lower optimizer.lr, another model.norm, or method.initial=none",
            )
        mask = Mask.from_bits(bits, self.space.n_prunable, 0, self.space.values.device)
        preparation.count_returned_model(mask)
        costs.gradient_samples = int(samples)
        return mask

    def _train(self, client: int, preparation: Preparation, mask: Mask) -> Mask:
        wanted = self.adjustments * self.steps
        # As many passes over the samples are enough even where each is a single batch.
        batches = _counted(islice(preparation.client_batches(client, wanted), wanted), preparation.costs)
        if preparation.rehearses:
            deque(batches, maxlen=0)
            return mask
        values = self._masked(preparation.values, mask)
        for _ in range(self.adjustments):
            report = preparation.client.train(
                RoundPlan(0, values, self.work),
                batches,
                self.steps,
                self.rate,
                waits=preparation.client.may_lack_room,
            )
            found = [report.values, *(upload.values for upload in report.uploads.values())]
            if not all(is_summable(numbers) for numbers in found if numbers is not None):
                values = values * torch.nan
                break
            values = self.space.unpack(report.values)
            mask = mask.next(self.adjust(values, report.uploads))
            values = self._masked(values, mask)
        preparation.values = preparation.return_model(values, mask)
        return mask

    def _masked(self, values: Tensor, mask: Mask) -> Tensor:
        """The state without what is inactive; ``mask`` becomes the space's."""
        self.space.load(values)
        self.space.set_mask(mask)
        return self.space.values.clone()


def _counted(batches: Iterator[Batch], costs: PreparationCosts) -> Iterator[Batch]:
    """The batches, their samples counted as each is taken."""
    for batch in batches:
        costs.gradient_samples += len(batch[1])
        yield batch
