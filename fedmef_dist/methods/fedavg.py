"""FedAvg.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629, algorithm 1. Clients run local SGD; the server averages all parameters and
running statistics, weighted by samples.
"""

from typing import Literal

from pydantic import Field

from fedmef_dist.base.settings import Settings
from fedmef_dist.methods.base import Method
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask


class FedAvgSettings(Settings):
    """Section ``method`` with ``name: fedavg``."""

    name: Literal["fedavg"] = Field("fedavg", description="dense federated averaging")


class FedAvg(Method[FedAvgSettings]):
    """Every weight is active in every round."""

    def initial_mask(self, preparation: Preparation) -> Mask:
        """The full mask."""
        return Mask.full(self.space.n_prunable, self.space.values.device)
