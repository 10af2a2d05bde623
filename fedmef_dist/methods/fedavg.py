"""FedAvg.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629, algorithm 1. Clients run local SGD; the server averages all parameters and
running statistics, weighted by samples.
"""

from typing import ClassVar, Literal, TypeVar

from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.methods.base import Method
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask


class FedAvgSettings(Settings):
    """Section ``method`` with ``name: fedavg``."""

    name: Literal["fedavg"] = Field("fedavg", description="dense federated averaging")


DenseSettingsT = TypeVar("DenseSettingsT", bound=Settings)


class Dense(Method[DenseSettingsT]):
    """A method that prunes nothing: every weight is active in every round."""

    def refuses_tiers(self) -> str | None:
        """All weights are trained."""
        return "it prunes nothing"

    def initial_mask(self, preparation: Preparation) -> Tensor:
        """All weights."""
        return Mask.full(self.space.n_prunable, self.space.values.device).active


class FedAvg(Dense[FedAvgSettings]):
    """The average of the clients' states."""

    Settings: ClassVar[type[FedAvgSettings]] = FedAvgSettings
    plain_steps = True
