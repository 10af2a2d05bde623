"""What a rank adds up in a round: its clients' updates, each wholly or not at all."""

from fedmef_dist.clients.client import ClientReport
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.cluster.group import Group
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.exact_sum import is_summable
from fedmef_dist.sums.position_sum import PositionSum, Sums
from fedmef_dist.sums.round_sum import RoundResult, RoundSum


class CohortSum:
    """One rank's part of a round's sums: the packed states, and the collections that the plan asks for.

    Args:
        space: the parameter space with the round's mask.
        cohort: the round's clients, of all ranks.
        plan: what the method asks for.
        group: the ranks.
    """

    def __init__(self, space: ParameterSpace, cohort: Cohort, plan: RoundPlan, group: Group) -> None:
        self.cohort = cohort
        weight = int(cohort.weights.sum())
        size = space.packed_size(plan.returns_weights)
        self.states = RoundSum(size, len(cohort.clients), weight, space.mask.digest, group)
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

    def add(self, slot: int, report: ClientReport) -> bool:
        """Adds a client, wholly or not at all; returns False where its update is refused."""
        weight, samples = int(self.cohort.weights[slot]), int(self.cohort.samples[slot])
        uploads = report.uploads.values()
        sane = all(upload.values is None or is_summable(upload.values) for upload in uploads)
        loss = report.loss if sane else float("nan")
        accepted = self.states.add(slot, report.values, weight, loss, report.seconds, samples)
        if accepted:
            for name, total in self.collections.items():
                total.add(report.uploads[name].positions, report.uploads[name].values, weight)
        return accepted

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
