"""SCAFFOLD.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh: "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378, algorithm 1 with option II. Each client keeps a control variate c_k, the server their mean c;
every local step is corrected by c - c_k, so that clients with other data do not drift apart.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.fedavg import Dense
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.ranges import parameters
from fedmef_dist.wire.traffic import Broadcast, Upload, whole

_CONTROL, _CHANGE = "control", "control_change"


class ScaffoldSettings(Settings):
    """Section ``method`` with ``name: scaffold``."""

    name: Literal["scaffold"] = Field("scaffold", description="dense, with control variates against client drift")


class ControlledSteps(LocalWork):
    """Adds c - c_k to every gradient; at the end c_k becomes c_k - c + (x - y_k) / (sum of the learning rates)."""

    def __init__(self, space: ParameterSpace, values: Tensor) -> None:
        self.space, self.origin = space, values[: space.n_parameters]
        self.held = 3 * space.n_parameters  # c, c_k and the state that was sent

    def begin(self, client: LocalClient) -> None:
        """Takes what the client has received and kept."""
        self.control, self.own, self.travelled = client.received[_CONTROL], client.kept[_CONTROL], 0.0

    def prepare_step(self, step: int, steps: int, rate: float) -> float:
        """Corrects the gradient."""
        self.space.gradient.add_(self.control).sub_(self.own)
        self.travelled += rate
        return rate

    def uploads(self, gradient: Tensor | None) -> dict[str, Upload]:
        """The change of c_k, float32 (n_parameters,)."""
        moved = self.origin - self.space.values[: self.space.n_parameters]
        change = moved / self.travelled - self.control
        self.own.add_(change)
        return {_CHANGE: Upload(None, change)}


class Scaffold(Dense[ScaffoldSettings]):
    """The server's c grows by the clients' mean change, weighted as their states are, times |S| / N."""

    Settings: ClassVar[type[ScaffoldSettings]] = ScaffoldSettings

    def __init__(self, settings: ScaffoldSettings, space: ParameterSpace, context: MethodContext) -> None:
        super().__init__(settings, space, context)
        if not context.plain_sgd:
            key, mend = ("momentum", "set it to 0") if context.momentum else ("name", "set it to sgd")
            raise UserError("control variates need plain SGD", where=f"optimizer.{key}", mend=mend)
        self.control = torch.zeros(space.n_parameters, device=space.values.device)

    def kept(self) -> Sequence[KeptTensor]:
        """c_k."""
        return (KeptTensor(_CONTROL, self.space.n_parameters),)

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """The server sends c down, and collects the changes of c_k."""
        over = parameters(self.space)
        down, up = Broadcast(_CONTROL, over, self.control), whole(_CHANGE, over)
        work = ControlledSteps(self.space, values)
        return RoundPlan(round, values, work, broadcasts=(down,), collections=(up,))

    def aggregate(self, plan: RoundPlan, received: Received) -> tuple[Tensor, Tensor | None]:
        """The average; c moves on."""
        self.control = self.control + received.sums[_CHANGE].mean() * (received.clients / self.context.clients)
        return received.average, None

    def state(self) -> dict[str, Tensor]:
        """c, float32 (n_parameters,)."""
        return {_CONTROL: self.control}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes c back."""
        self.control = state[_CONTROL].to(self.control.device)
