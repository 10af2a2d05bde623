"""What a round asks of clients: the work in addition to SGD, what goes down, what comes up."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fedmef_dist.data.batches import Batch
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.encodings import Encoding
from fedmef_dist.wire.traffic import Broadcast, Collection, Upload


@dataclass(frozen=True)
class LocalClient:
    """The client that a :class:`LocalWork` works for.

    Attributes:
        number: in the population.
        received: the round's broadcasts by name, as the client decoded them, float32.
        kept: what the client keeps of the method's own from round to round, by name, float32; changed in place.
    """

    number: int = -1
    received: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class LocalWork:
    """What a client does in a round in addition to SGD on its loss: nothing.

    One object serves all clients that a rank trains in a round, one after another; clients beside each other have
    copies of it.

    Attributes:
        gradient_batches: batches behind its training on which a client takes the gradient of all positions.
        dense_batches: batches of its training whose gradient is taken at all positions.
        extra_epochs: passes over its samples that it trains on after its update is made, in :meth:`train_more`.
        penalises: whether its loss has a penalty on marked weights.
        held: numbers (float32) that it holds on the device in addition to what a training step needs.
    """

    gradient_batches: int = 0
    dense_batches: float = 0
    extra_epochs: int = 0
    held: int = 0
    penalises: ClassVar[bool] = False

    @property
    def reads_gradient(self) -> bool:
        """Whether :meth:`prepare_step` needs more than the schedule's rate; else ``space.gradient`` is not made."""
        return type(self).prepare_step is not LocalWork.prepare_step

    def moved(self, here: ParameterSpace, there: ParameterSpace) -> "LocalWork":
        """A copy that works on another space, for a client beside those of this one.

        All that it holds is copied, so that neither changes the other, but for the space, in whose place the other one
        comes wherever it is held, and for the space's mask, which both have.
        """
        return deepcopy(self, {id(here): there, id(here.mask): here.mask})

    def begin(self, client: LocalClient) -> None:
        """Called when a client has loaded the global state, before its first step."""

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

    def train_more(self, batches: Iterator[Batch], rate: float, loss: Callable[[Batch], Tensor]) -> None:
        """What a client trains for itself, on ``extra_epochs`` passes, once its update is made.

        The space may be changed: it is loaded anew for the next client.

        Args:
            batches: of all passes.
            rate: the round's learning rate.
            loss: the model's mean loss on a batch, 0-dim.
        """


@dataclass(frozen=True)
class RoundPlan:
    """What the method asks of clients and server in one round; the same on every rank.

    Attributes:
        round: its number, from 1; 0 before the first one.
        values: float32 (total,), the state that is broadcast.
        work: what clients do in addition to SGD.
        broadcasts: what goes down in addition to the model.
        collections: what is summed over the clients in addition to their states.
        returns_weights: whether the clients' prunable weights are averaged at the positions of the round's mask; else
            a collection brings them, and :meth:`Method.aggregate` makes one state of it.
        adjusts: whether the round ends with a new mask.
        swap_counts: weights to prune and to grow in each layer, xi_l.
        marked: int64, the active positions that are to be pruned, where that is known beforehand.
        mask_update: how the model travels with its mask to a client that knows an earlier mask of the run; None: as to
            one that knows none.
        round_mask: where tiers train parts of it, the round's mask, among whose inactive weights clients choose;
            None: the mask that a client trains with, or ends with where it changes its own.
    """

    round: int
    values: Tensor
    work: LocalWork = field(default_factory=LocalWork)
    broadcasts: tuple[Broadcast, ...] = ()
    collections: tuple[Collection, ...] = ()
    returns_weights: bool = True
    adjusts: bool = False
    swap_counts: list[int] = field(default_factory=list)
    marked: Tensor | None = None
    mask_update: Encoding | None = None
    round_mask: Mask | None = None
