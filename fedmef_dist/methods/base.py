"""What a federated algorithm may decide."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from fedmef_dist.sparsity import Mask, ParameterSpace


class LocalObjective:
    """What a client minimises beside its loss, and at which learning rate: nothing, and the ordinary one."""

    def prepare_step(self, step: int, steps: int, rate: float) -> float | Tensor:
        """Called after each backward pass; may add to ``space.gradient``. Returns the step's learning rate.

        Args:
            step: number of the step in the client's round, from 0.
            steps: steps of the round.
            rate: what the ordinary schedule gives.
        """
        return rate


@dataclass(frozen=True)
class RoundPlan:
    """What the method asks of clients and server in one round; the same on every rank.

    Attributes:
        objective: the clients' objective.
        adjusts: whether the round ends with an adjustment of the mask.
        swap_counts: weights to prune and to grow in each layer, xi_l.
        gradient_batches: batches on which a client takes the gradient of inactive weights.
        marked: int64, the active positions that are to be pruned; None where there is no adjustment.
    """

    objective: LocalObjective = field(default_factory=LocalObjective)
    adjusts: bool = False
    swap_counts: list[int] = field(default_factory=list)
    gradient_batches: int = 0
    marked: Tensor | None = None


@dataclass(frozen=True)
class Swap:
    """Positions (int64) that an adjustment prunes and grows."""

    pruned: Tensor
    grown: Tensor


class Method(ABC):
    """A federated algorithm over one parameter space."""

    def __init__(self, space: ParameterSpace) -> None:
        self.space = space

    @abstractmethod
    def initial_mask(self, generator: np.random.Generator) -> Mask:
        """The mask of the first round."""

    def plan(self, round_number: int, values: Tensor) -> RoundPlan:
        """The plan of a round (from 1), given the broadcast state ``values`` (float32 (total,))."""
        return RoundPlan()

    def swap(self, plan: RoundPlan, values: Tensor, gradient: Tensor) -> Swap:
        """The server's decision in an adjusting round.

        Args:
            plan: the round's plan.
            values: float32 (total,), the aggregated state.
            gradient: float32 (n_prunable,), the aggregated gradients of inactive weights.
        """
        raise NotImplementedError(f"{type(self).__name__} does not adjust its mask")

    def grown_values(self, values: Tensor, grown: Tensor) -> Tensor:
        """Values (float32) at which the positions ``grown`` start; ``values`` is the state after pruning."""
        return values.new_zeros(grown.numel())

    def metrics(self, plan: RoundPlan, before: Tensor, after: Tensor) -> dict[str, float]:
        """Metrics of a round, from the states (float32 (total,)) before it and after aggregation."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What the method remembers from round to round, for the checkpoint.

        Names, types and shapes are the same over a whole run, and so from the start: a checkpoint that has others is
        refused.
        """
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave (on the CPU). Raises ValueError where a value is impossible."""
        if state:
            raise ValueError(f"{type(self).__name__} remembers nothing")
