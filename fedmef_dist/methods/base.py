"""What a federated algorithm may decide."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums

if TYPE_CHECKING:
    from fedmef_dist.methods.preparation import Preparation

# The collection of clients' prunable weights under masks of their own.
WEIGHTS = "weights"
SettingsT = TypeVar("SettingsT", bound=Settings)
_AnySettings = Settings


@dataclass(frozen=True)
class Upload:
    """What one client contributes to a :class:`Collection`.

    Attributes:
        positions: int64 (count,), in the prunable part of the flat vector, each once, ascending within each layer.
        values: float32 (count,); None where the positions alone count.
    """

    positions: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class Collection:
    """A sum over the cohort that a round collects beside the clients' states.

    Attributes:
        name: what :meth:`LocalWork.uploads` calls it.
        counts: how many positions a client names in each layer.
        has_values: whether a client sends a value for each position; they are summed, weighted.
        has_votes: whether the weights of those who named a position are summed.
        travels: False where the server reads it off the state that it gets anyway, so that no byte more is sent.
    """

    name: str
    counts: Sequence[int]
    has_values: bool = True
    has_votes: bool = False
    travels: bool = True


class LocalWork:
    """What a client does in a round beside SGD on its loss: nothing.

    One object serves all clients that a rank trains in a round, one after another.

    Attributes:
        gradient_batches: batches behind its training on which a client takes the gradient of all positions.
        dense_batches: batches of its training whose gradient is taken at all positions.
        penalises: whether its loss has a penalty on marked weights.
    """

    gradient_batches: int = 0
    dense_batches: float = 0
    penalises: ClassVar[bool] = False

    def begin(self) -> None:
        """Called when a client has loaded the global state."""

    def prepare_step(self, step: int, steps: int, rate: float) -> float | Tensor:
        """Called after each backward pass. Returns the step's learning rate.

        ``space.gradient`` then has the gradient of all positions, active or not; the work may add to it. It may also
        change the space's mask: the client then goes on with a mask of its own.

        Args:
            step: number of the step in the client's round, from 0.
            steps: steps of the round.
            rate: what the ordinary schedule gives.
        """
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """What the client contributes to the round's collections; ``space.values`` has its trained state.

        Args:
            gradient: float32 (n_prunable,), the mean over ``gradient_batches`` batches; None where there are none.
        """
        return {}


@dataclass(frozen=True)
class RoundPlan:
    """What the method asks of clients and server in one round; the same on every rank.

    Attributes:
        work: what clients do beside SGD.
        adjusts: whether the round ends with a new mask.
        collections: what is summed over the clients beside their states.
        client_masks: whether clients end the round with masks of their own. Their prunable weights then come as the
            collection ``WEIGHTS``, and :meth:`Method.merge` makes one state of them.
        direction: int8 (n_prunable,) in {-1, 0, 1}, which the server sends down beside the model; None: nothing.
        swap_counts: weights to prune and to grow in each layer, xi_l.
        marked: int64, the active positions that are to be pruned, where that is known beforehand.
    """

    work: LocalWork = field(default_factory=LocalWork)
    adjusts: bool = False
    collections: tuple[Collection, ...] = ()
    client_masks: bool = False
    direction: Tensor | None = None
    swap_counts: list[int] = field(default_factory=list)
    marked: Tensor | None = None


@dataclass(frozen=True)
class Preferences:
    """What ``auto`` means under a method.

    Attributes:
        norm: the model's normalisation; None: the one that the network was made with.
        activation_pruning: whether activations are pruned.
    """

    norm: str | None = None
    activation_pruning: bool = False


@dataclass(frozen=True)
class MethodContext:
    """What of a run's configuration methods need beside their own settings.

    Attributes:
        base_rate: the clients' learning rate at the start, eta_0.
        rounds: of the run.
        seed: of the run.
        layer_flops: FLOPs of one sample's forward pass through each prunable layer, all its weights active.
        other_flops: FLOPs of one sample's forward pass through all else.
        total_weight: what all clients of the population would weigh in an average; an expected number where clients
            are drawn only when they are sampled.
    """

    base_rate: float = 0.1
    rounds: int = 1
    seed: int = 0
    layer_flops: Sequence[float] = ()
    other_flops: float = 0.0
    total_weight: int = 1


class Method(ABC, Generic[SettingsT]):
    """A federated algorithm over one parameter space.

    Attributes:
        Settings: the class of its keys in section ``method``; a subclass inherits it, or gives a subclass of it.
        preferences: what ``auto`` means under it.
    """

    Settings: ClassVar[type[_AnySettings]] = _AnySettings
    preferences: ClassVar[Preferences] = Preferences()

    def __init__(self, settings: SettingsT, space: ParameterSpace, context: MethodContext) -> None:
        self.settings, self.space, self.context = settings, space, context

    @abstractmethod
    def initial_mask(self, preparation: "Preparation") -> Mask:
        """The mask of the first round. May also change ``preparation.values``, the state of the first round."""

    def plan(self, round_number: int, values: Tensor) -> RoundPlan:
        """The plan of a round (from 1), given the broadcast state ``values`` (float32 (total,))."""
        return RoundPlan()

    def union(self, weights: Sums) -> Tensor:
        """Positions (bool (n_prunable,)) that are active after a round whose clients have masks of their own.

        ``space.mask`` is then still that of the broadcast state; ``weights`` is what the clients sent, with votes.
        """
        assert weights.votes is not None
        return weights.votes > 0

    def merge(self, values: Tensor, weights: Sums) -> Tensor:
        """One vector of prunable weights from clients that have masks of their own.

        Args:
            values: float32 (total,), the state that was broadcast.
            weights: what the clients sent, with votes.

        Returns:
            float32 (n_prunable,), 0 outside :meth:`union`.
        """
        return weights.mean_of_voters()

    def observe(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> None:
        """Every round in which a client counts, on every rank: what the method remembers of the aggregated state
        ``values`` (float32 (total,)) and of the round's collections.
        """

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Mask:
        """The server's decision in an adjusting round, taken on rank 0: the mask from now on.

        Args:
            plan: the round's plan.
            values: float32 (total,), the aggregated state.
            sums: the round's collections.
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
