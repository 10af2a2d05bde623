"""FedDST.

Bibikar, Vikalo, Wang, Chen: "Federated Dynamic Sparse Training: Computing Less, Communicating Less, Yet Learning
Better", AAAI 2022, arXiv 2112.09824. From a random mask, clients readjust their own masks every few rounds, in the
middle of their training, as RigL does: they prune by magnitude and grow by gradient. The server averages each weight
over those clients that keep it, and prunes the union by magnitude.
"""

from typing import ClassVar, Literal

from pydantic import Field

from fedmef_dist.methods.client_masks import ClientMasks, ClientMaskSettings
from fedmef_dist.sparsity.schedule import AdjustmentSchedule


class FedDstSettings(ClientMaskSettings):
    """Section ``method`` with ``name: feddst``."""

    name: Literal["feddst"] = Field("feddst", description="federated dynamic sparse training on the clients")
    adjust_every: int = Field(10, ge=1, description="rounds between two adjustments of the mask")
    adjust_until: int | None = Field(
        None, ge=1, description="round at which the share of swapped weights reaches 0; null: half of the rounds"
    )
    adjust_rate: float = Field(0.2, ge=0, le=1, description="share of a layer's weights swapped at round 0")


class FedDst(ClientMasks[FedDstSettings]):
    """Clients swap by magnitude and gradient; who does not keep a weight has no say in its value.

    Every client goes from a layer's count a_l to a_l - floor(zeta_r * a_l) and back. The server's average is sum n_k
    theta_k / sum n_k over the clients that keep a position (algorithm 1).
    """

    Settings: ClassVar[type[FedDstSettings]] = FedDstSettings

    @classmethod
    def begins_alike(cls, settings: FedDstSettings, before: int, rounds: int) -> bool:
        """Half of another number of rounds is another schedule."""
        return settings.adjust_until is not None or before // 2 == rounds // 2

    def adjustments(self) -> AdjustmentSchedule:
        """Until half of the run's rounds, unless the settings say otherwise."""
        settings = self.settings
        until = self.context.rounds // 2 if settings.adjust_until is None else settings.adjust_until
        return AdjustmentSchedule(settings.adjust_every, until, settings.adjust_rate)
