"""What a run would have cost the simulated devices: encoded bytes and FLOPs, round by round."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.clients.tiers import Tiers
from fedmef_dist.config import Config
from fedmef_dist.data.batches import steps_per_epoch
from fedmef_dist.devices.flops import FlopsLedger, RoundFlops
from fedmef_dist.methods.preparation import PreparationCosts
from fedmef_dist.simulation.totals import Totals
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.ledger import VALUE_BYTES, WireBytes, WireLedger


class Accounting:
    """The two ledgers of the simulated devices, and what they add up to.

    Args:
        config: the run.
        model: with its parameters in ``space``.
        space: the parameter space.
        example: a batch of one sample.

    Attributes:
        tiers: of the run; none until they are set.
    """

    def __init__(self, config: Config, model: Any, space: ParameterSpace, example: Any) -> None:
        self.tiers = Tiers((), space, config.seed, None)
        self.federation, self.space = config.federation, space
        self.wire = WireLedger(space, config.federation.clients, config.wire)
        self.flops = FlopsLedger(model, space, example)

    def prepare(self, costs: PreparationCosts, totals: Totals) -> None:
        """Adds what was sent and computed before the first round."""
        totals.wire_bytes += costs.up + costs.down
        dense = [layer.size for layer in self.space.layers]
        totals.flops += self.flops.round(dense, samples=0, steps=0, gradient_samples=costs.gradient_samples).total
        totals.flops += sum(samples * self.flops.forward(counts) for counts, samples in costs.forwards)
        for training in costs.trainings:
            totals.flops += self.flops.round(training.counts, samples=training.samples, steps=training.steps).total

    def round(
        self, cohort: Cohort, plan: RoundPlan, mask: Mask, totals: Totals, varied_bytes: Sequence[int] | None = None
    ) -> Metrics:
        """One round's costs, added to the totals; ``mask`` is what the clients were sent.

        ``varied_bytes`` is what each tier sent for collections that vary; None: as much as is expected. Whoever was
        asked has received the model; of those whose update does not count nothing else is counted. With tiers each has
        its costs for itself, too.
        """
        metrics: Metrics = {}
        varied: Sequence[int | None] = varied_bytes or [None] * max(1, len(self.tiers))
        if not len(self.tiers):
            wire, flops = self._costs(cohort, plan, mask, varied[0])
        else:
            parts = [(self.tiers.part(cohort, tier), found) for tier, found in enumerate(self.tiers.round(plan, mask))]
            costs = [
                self._costs(part, tier.plan, tier.mask, sent, tier.is_part)
                for (part, tier), sent in zip(parts, varied, strict=True)
            ]
            wire = WireBytes(sum(cost.up for cost, _ in costs), sum(cost.down for cost, _ in costs))
            flops = sum((found for _, found in costs[1:]), costs[0][1])
            for number in range(self.tiers.populated):
                (part, tier), (sent, computed) = parts[number], costs[number]
                metrics |= {
                    f"tier{number}/clients": len(part.clients),
                    f"tier{number}/density": (tier.mask.count + self.space.n_dense) / self.space.n_parameters,
                    f"tier{number}/up_bytes": sent.up,
                    f"tier{number}/down_bytes": sent.down,
                    f"tier{number}/flops": computed.total,
                }
        totals.wire_bytes += wire.up + wire.down
        totals.models_sent += len(cohort.asked) + len(cohort.clients)
        totals.flops += flops.total
        return {
            "wire/up_bytes": wire.up,
            "wire/down_bytes": wire.down,
            "wire/total_bytes": totals.wire_bytes,
            "flops/train": flops.total,
            "flops/overhead": flops.overhead,
            "flops/total": totals.flops,
            **({"memory/method_bytes": VALUE_BYTES * plan.work.held} if plan.work.held else {}),
            **metrics,
        }

    def _costs(
        self, cohort: Cohort, plan: RoundPlan, mask: Mask, varied_bytes: int | None, is_part: bool = False
    ) -> tuple[WireBytes, RoundFlops]:
        """What clients send, receive and compute that all train the same mask."""
        federation, work = self.federation, plan.work
        samples = cohort.samples
        batches = steps_per_epoch(samples, federation.batch_size)
        epochs = federation.local_epochs + work.extra_epochs
        steps = epochs * int(batches.sum())
        own = federation.local_epochs * samples
        flops = self.flops.round(
            self.space.layer_counts(mask),
            samples=int((epochs * samples).sum()),
            steps=steps + int(np.minimum(batches, work.gradient_batches).sum()),
            extrusion_steps=federation.local_epochs * int(batches.sum()) if work.penalises else 0,
            gradient_samples=int(np.minimum(samples, federation.batch_size * work.gradient_batches).sum()),
            dense_gradient_samples=int(np.minimum(own, federation.batch_size * work.dense_batches).sum()),
        )
        wire = self.wire.round(
            cohort.asked,
            len(cohort.clients),
            mask,
            plan.broadcasts,
            plan.collections,
            plan.returns_weights,
            plan.mask_update,
            varied_bytes,
            is_part,
        )
        return wire, flops
