"""What a rank adds up in a round: its clients' updates, each wholly or not at all."""

from fedmef_dist.client import ClientReport
from fedmef_dist.comm.exact_sum import is_summable
from fedmef_dist.comm.group import Group
from fedmef_dist.comm.packed import RoundResult, RoundSum, SparseSum
from fedmef_dist.data.federation import Cohort
from fedmef_dist.methods.base import RoundPlan
from fedmef_dist.sparsity import ParameterSpace


class CohortSum:
    """One rank's part of a round's sums: the packed states, and in an adjusting round the top gradients.

    Args:
        space: the parameter space with the round's mask.
        cohort: the round's clients, of all ranks.
        plan: what the method asks for.
        group: the ranks.
    """

    def __init__(self, space: ParameterSpace, cohort: Cohort, plan: RoundPlan, group: Group) -> None:
        self.cohort = cohort
        weight = int(cohort.weights.sum())
        self.states = RoundSum(space.packed_size, len(cohort.clients), weight, space.mask.digest, group)
        self.gradient = SparseSum(space.n_prunable, self.states.fixed_point, group) if plan.adjusts else None

    def add(self, slot: int, report: ClientReport) -> bool:
        """Adds a client, wholly or not at all; returns False where its update is refused."""
        weight, samples = int(self.cohort.weights[slot]), int(self.cohort.samples[slot])
        sane = report.gradient is None or is_summable(report.gradient.values)
        loss = report.loss if sane else float("nan")
        accepted = self.states.add(slot, report.values, weight, loss, report.seconds, samples)
        if accepted and report.gradient is not None and self.gradient is not None:
            self.gradient.add(report.gradient.positions, report.gradient.values, weight)
        return accepted

    def reduce(self, stopping: bool) -> RoundResult:
        """The packed states of all ranks; ``stopping`` tells them that this one was asked to stop."""
        return self.states.reduce(stopping)
