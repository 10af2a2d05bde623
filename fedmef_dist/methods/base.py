"""What a federated algorithm may decide."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.clients.tiers import HELD
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums

SettingsT = TypeVar("SettingsT", bound=Settings)
_AnySettings = Settings


@dataclass(frozen=True)
class Preferences:
    """What ``auto`` means under a method.

    Attributes:
        norm: the model's normalisation; None: the one that the network was made with.
        activation_pruning: whether activations are pruned.
        pruned_share: how much of them: ``sap.prune_ratio``, or as much as of the layer's weights.
    """

    norm: str | None = None
    activation_pruning: bool = False
    pruned_share: Literal["fixed", "weights"] = "fixed"


@dataclass(frozen=True)
class MethodContext:
    """What of a run's configuration methods need in addition to their own settings.

    Attributes:
        base_rate: the clients' learning rate at the start, eta_0.
        momentum: of the clients' SGD.
        plain_sgd: whether the clients' steps are the gradient times the learning rate, and nothing else.
        rounds: of the run.
        seed: of the run.
        clients: of the population.
        local_epochs, batch_size: of a client's training in a round.
        layer_flops: FLOPs of one sample's forward pass through each prunable layer, all its weights active.
        other_flops: FLOPs of one sample's forward pass through all else.
        total_weight: what all clients of the population would weigh in an average; an expected number where clients
            are drawn only when they are sampled.
    """

    base_rate: float = 0.1
    momentum: float = 0.0
    plain_sgd: bool = True
    rounds: int = 1
    seed: int = 0
    clients: int = 1
    local_epochs: int = 1
    batch_size: int = 1
    layer_flops: Sequence[float] = ()
    other_flops: float = 0.0
    total_weight: int = 1


@dataclass(frozen=True)
class Received:
    """What the server has of a round's clients.

    Attributes:
        average: float32 (total,), their mean state; its prunable weights are 0 where the plan does not return them.
        sums: the round's collections by name.
        clients: how many count.
    """

    average: Tensor
    sums: Mapping[str, Sums]
    clients: int


def holders(sums: Mapping[str, Sums]) -> Tensor | None:
    """The weight of the clients that hold each prunable weight, int64 (n_prunable,); None without tiers: all hold all.

    A client with a mask of its own also holds what it was sent and has pruned.
    """
    return sums[HELD].votes if HELD in sums else None


class Method(ABC, Generic[SettingsT]):
    """A federated algorithm over one parameter space.

    Attributes:
        Settings: the class of its keys in section ``method``; a subclass inherits it, or gives a subclass of it.
        preferences: what ``auto`` means for its runs.
        plain_steps: whether its clients do nothing but SGD in every round, so that no gradient of all parameters is
            ever there at once. False leaves room for it in a memory budget.
        keeps_counts: whether every adjustment leaves every layer as many active weights as it had.
    """

    Settings: ClassVar[type[_AnySettings]] = _AnySettings
    plain_steps: ClassVar[bool] = False
    keeps_counts: ClassVar[bool] = True
    preferences: ClassVar[Preferences] = Preferences()

    def __init__(self, settings: SettingsT, space: ParameterSpace, context: MethodContext) -> None:
        self.settings, self.space, self.context = settings, space, context

    @classmethod
    def weight_power(cls, settings: SettingsT) -> float:
        """A prunable weight acts as sign(theta) |theta|^alpha; 1: as the parameter that it is."""
        return 1.0

    @classmethod
    def begins_alike(cls, settings: SettingsT, before: int, rounds: int) -> bool:
        """Whether a run of ``before`` rounds comes to the same weights as one of ``rounds``, in the rounds of both.

        It may then be given that number of rounds afterwards. False where what a round does depends on how many there
        are.
        """
        return True

    def refuses_tiers(self) -> str | None:
        """Why clients cannot train a part of the mask (``federation.tiers``); None: they can."""
        return None

    def part(self, plan: RoundPlan, mask: Mask) -> RoundPlan:
        """What clients do in a round that train ``mask``, a part of the round's (``federation.tiers``).

        Where they change masks of their own, what they send is as long as that one has them send.

        Args:
            plan: the round's, with the values of the part alone.
            mask: the part.

        Raises:
            UserError: clients have masks of their own, of which the method makes no parts.
        """
        if not plan.returns_weights:
            raise UserError(
                "this method has no tiers: its clients have masks of their own",
                where="federation.tiers",
                mend="leave tiers out",
            )
        return plan

    @abstractmethod
    def initial_mask(self, preparation: Preparation) -> Tensor:
        """Which weights are active in the first round, bool (n_prunable,).

        May also change ``preparation.values``, the state of the first round.
        """

    def caution(self) -> str | None:
        """What the user should know of the mask that the run begins with, as one line; None: nothing. Rank 0 asks."""
        return None

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """The plan of a round (from 1), given the broadcast state ``values`` (float32 (total,)). Remembers nothing."""
        return RoundPlan(round, values)

    def kept(self) -> Sequence[KeptTensor]:
        """What every client keeps of the method's own from round to round: 4 bytes a number and client."""
        return ()

    def foreseen_mask(self, round: int) -> Tensor | None:
        """For plan, which trains nobody: a mask (bool (n_prunable,)) like that which the round leaves.

        None: it has as many active weights in each layer as before, whatever the round does with them.
        """
        return None

    def personal(self, values: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
        """The state (float32 (total,)) that a client uses itself, given the global one and what it keeps."""
        return values

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """The state, float32 (total,), that the clients' updates make, and which weights are active in it.

        Called on every rank in every round that counts, before a server optimiser; ``space.mask`` is that of the
        broadcast state. None as the second result leaves the mask as it is; else bool (n_prunable,), and the state is 0
        outside of it.
        """
        return received.average, None

    def observe(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> None:
        """Every round that counts, on every rank: what the method remembers of the new state ``values`` (float32
        (total,)) and of the round's collections.
        """

    def next_mask(self, plan: RoundPlan, values: Tensor, sums: Mapping[str, Sums]) -> Tensor:
        """The server's decision in an adjusting round, taken on rank 0: who is active from now on, bool (n_prunable,).

        Args:
            plan: the round's plan.
            values: float32 (total,), the aggregated state.
            sums: the round's collections.
        """
        raise NotImplementedError(f"{type(self).__name__} does not adjust its mask")

    def grown_values(self, values: Tensor, grown: Tensor) -> Tensor:
        """Values (float32) at which the positions ``grown`` start; ``values`` is the state after pruning."""
        return values.new_zeros(grown.numel())

    def metrics(self, plan: RoundPlan, values: Tensor) -> Mapping[str, float | Tensor]:
        """Metrics of a round, from its plan and the state (float32 (total,)) after aggregation.

        A number that the device computes is given as a 0-dim tensor, which is read when the round waits anyway.
        """
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
