"""FedDyn.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama: "Federated Learning Based on Dynamic Regularization", ICLR
2021, arXiv 2111.04263, algorithm 1. Each client adds a linear and a quadratic term to its loss, so that the minima of
all clients' losses agree with that of the sum; nothing travels in addition to the model.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.fedavg import Dense
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.traffic import Upload

_GRADIENT = "gradient"


class FedDynSettings(Settings):
    """Section ``method`` with ``name: feddyn``."""

    name: Literal["feddyn"] = Field("feddyn", description="dense, with dynamic regularisation")
    alpha: float = Field(0.01, gt=0, description="strength of the regularisation")


class RegularisedSteps(LocalWork):
    """Adds alpha (theta - theta_r) - g_k to every gradient; at the end g_k falls by alpha (theta_k - theta_r)."""

    def __init__(self, space: ParameterSpace, values: Tensor, alpha: float) -> None:
        self.space, self.origin, self.alpha = space, values[: space.n_parameters], alpha
        self.held = 2 * space.n_parameters  # g_k and the state that was sent

    def begin(self, client: LocalClient) -> None:
        """Takes g_k, the client's last gradient."""
        self.own = client.kept[_GRADIENT]

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Adds the gradient of both terms."""
        moved = self.space.values[: self.space.n_parameters] - self.origin
        self.space.gradient.add_(moved, alpha=self.alpha).sub_(self.own)
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """Nothing; the client keeps its new g_k."""
        self.own.sub_(self.space.values[: self.space.n_parameters] - self.origin, alpha=self.alpha)
        return {}


class FedDyn(Dense[FedDynSettings]):
    """The server remembers h, and takes the average less h / alpha."""

    Settings: ClassVar[type[FedDynSettings]] = FedDynSettings

    def __init__(self, settings: FedDynSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        self.memory = torch.zeros(space.n_parameters, device=space.values.device)

    def kept(self) -> Sequence[KeptTensor]:
        """g_k."""
        return (KeptTensor(_GRADIENT, self.space.n_parameters),)

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """Regularised steps in every round."""
        return RoundPlan(round, values, RegularisedSteps(self.space, values, self.settings.alpha))

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """The memory h falls by alpha |P| / m times the mean move; the state is the average less h / alpha."""
        alpha, last = self.settings.alpha, self.space.n_parameters
        moved = received.average[:last] - plan.values[:last]
        self.memory = self.memory - moved * (alpha * received.clients / self.context.clients)
        values = received.average.clone()
        values[:last] -= self.memory / alpha
        return values, None

    def state(self) -> dict[str, Tensor]:
        """h, float32 (n_parameters,)."""
        return {"memory": self.memory}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes h back."""
        self.memory = state["memory"].to(self.memory.device)
