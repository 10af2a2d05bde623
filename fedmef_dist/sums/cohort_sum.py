"""What a rank adds up in a round: its clients' updates, each wholly or not at all."""

import numpy as np
import torch

from fedmef_dist.clients.client import ClientReport
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.clients.tiers import Tiers
from fedmef_dist.cluster.group import Group
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.exact_sum import summable
from fedmef_dist.sums.position_sum import PositionSum, Sums
from fedmef_dist.sums.round_sum import RoundResult, RoundSum


class CohortSum:
    """One rank's part of a round's sums: the packed states, and the collections that the plan asks for.

    Args:
        space: the parameter space with the round's mask.
        cohort: the round's clients, of all ranks.
        plan: what the method asks for.
        group: the ranks.
        with_losses: whether the result is to have every client's loss.
        tiers: of the clients; None: there are none.
    """

    def __init__(
        self,
        space: ParameterSpace,
        cohort: Cohort,
        plan: RoundPlan,
        group: Group,
        with_losses: bool = False,
        tiers: Tiers | None = None,
    ) -> None:
        self.cohort = cohort
        self._tiers = np.zeros(len(cohort.clients), np.int64) if tiers is None else tiers.of(cohort.clients)
        weight = int(cohort.weights.sum())
        size = space.packed_size(plan.returns_weights)
        sent = space.pack(plan.values, plan.returns_weights)
        self.states = RoundSum(
            size,
            len(cohort.clients),
            weight,
            space.mask.digest,
            group,
            sent,
            with_losses=with_losses,
            tiers=max(1, 0 if tiers is None else len(tiers)),
        )
        self.collections = {
            wanted.name: PositionSum(
                wanted.over.size,
                has_values=wanted.has_values,
                has_votes=wanted.has_votes,
                fixed_point=self.states.fixed_point,
                group=group,
            )
            for wanted in plan.collections
        }

    def add(self, slot: int, report: ClientReport) -> torch.Tensor:
        """Adds a client, wholly or not at all; returns as :meth:`RoundSum.add` whether its update is accepted."""
        weight, samples = int(self.cohort.weights[slot]), int(self.cohort.samples[slot])
        sane = torch.ones((), dtype=torch.bool, device=report.values.device)
        for upload in report.uploads.values():
            if upload.values is not None:
                sane = sane & summable(upload.values)
        self.states.note_sent(report.varied_bytes, int(self._tiers[slot]))
        accepted = self.states.add(slot, report.values, weight, report.loss, report.seconds, samples, sane)
        on_host = accepted.device.type == "cpu"
        if not on_host or accepted:
            for name, total in self.collections.items():
                upload = report.uploads[name]
                total.add(upload.positions, upload.values, weight, None if on_host else accepted)
        return accepted

    def verdicts(self) -> dict[int, bool]:
        """For the place of every client so far whether it was accepted; the host waits for the device once."""
        return self.states.verdicts()

    def reduce(self, stopping: bool) -> RoundResult:
        """The packed states of all ranks; ``stopping`` tells them that this one was asked to stop."""
        return self.states.reduce(stopping)

    def collect(self, weight: int) -> dict[str, Sums]:
        """The collections of all ranks; ``weight`` is that of the clients that count."""
        return {name: total.reduce(weight) for name, total in self.collections.items()}

    @property
    def exchanges(self) -> dict[str, str]:
        """How each collection was exchanged between the ranks."""
        return {name: total.exchange for name, total in self.collections.items()}
