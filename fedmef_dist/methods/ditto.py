"""Ditto.

Li, Hu, Beirami, Smith: "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv
2012.04221, algorithm 1. The global model is FedAvg's. In addition each client keeps a model of its own, which it trains
on its loss plus lambda / 2 ||v_k - w||^2 with w the global model that it received; that one it uses itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.clients.kept_state import KeptTensor
from fedmef_dist.clients.plan import LocalClient, LocalWork, RoundPlan
from fedmef_dist.data.batches import Batch
from fedmef_dist.methods.fedavg import Dense
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sums.exact_sum import is_summable

_PERSONAL = "personal"


class DittoSettings(Settings):
    """Section ``method`` with ``name: ditto``."""

    name: Literal["ditto"] = Field("ditto", description="FedAvg, plus a personal model for each client")
    ditto_lambda: float = Field(0.1, ge=0, description="pull of the global model on a client's personal one")
    personal_epochs: int = Field(
        1, ge=1, description="passes over its samples in which a client trains its personal model"
    )


class PersonalTraining(LocalWork):
    """After its ordinary training a client trains its own model, v_k."""

    def __init__(self, space: ParameterSpace, values: Tensor, settings: DittoSettings) -> None:
        self.space, self.values, self.strength = space, values, settings.ditto_lambda
        self.extra_epochs = settings.personal_epochs
        self.held = 2 * space.total  # v_k and the state that was sent

    def begin(self, client: LocalClient) -> None:
        """Takes v_k."""
        self.own = client.kept[_PERSONAL]

    def train_more(self, batches: Iterator[Batch], rate: float, loss: Callable[[Batch], Tensor]) -> None:
        """v_k <- v_k - rate (grad F_k(v_k) + lambda (v_k - w)) on every batch; v_k has statistics of its own."""
        space, last = self.space, self.space.n_parameters
        space.load(self.own)
        for batch in batches:
            space.begin_backward()
            loss(batch).backward()
            space.end_backward()
            pull = space.values[:last] - self.values[:last]
            space.values[:last].sub_(space.gradient.add_(pull, alpha=self.strength), alpha=rate)
        if is_summable(space.values):  # a model of its own that diverges is not kept: no checkpoint could hold it
            self.own.copy_(space.values)


class Ditto(Dense[DittoSettings]):
    """FedAvg in addition to personal models; ``evaluation.per_client`` tests each client with its own."""

    Settings: ClassVar[type[DittoSettings]] = DittoSettings

    def kept(self) -> Sequence[KeptTensor]:
        """v_k with its running statistics; at first the global model."""
        return (KeptTensor(_PERSONAL, self.space.total, lambda values: values),)

    def personal(self, values: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
        """v_k."""
        return kept[_PERSONAL]

    def plan(self, round: int, values: Tensor) -> RoundPlan:
        """Clients also train their own models."""
        return RoundPlan(round, values, PersonalTraining(self.space, values, self.settings))
