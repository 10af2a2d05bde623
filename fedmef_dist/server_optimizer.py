"""What the server makes of the clients' average: takes it, or steps towards it with a memory of earlier rounds.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021, arXiv
2003.00295, algorithm 2 (FedAdam, FedYogi); Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification", 2019, arXiv 1909.06335 (FedAvgM).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace


class ServerOptimizerSettings(Settings):
    """Section ``server_optimizer``: how the server uses the clients' average, whatever the method."""

    name: Literal["none", "avgm", "adam", "yogi"] = Field("none", description="none takes the average as it is")
    lr: float = Field(1.0, gt=0, description="the server's learning rate, eta; adam and yogi want about 0.01 to 0.1")
    beta1: float = Field(0.9, ge=0, lt=1, description="share of the earlier direction that is kept")
    beta2: float = Field(0.99, ge=0, lt=1, description="adam, yogi: share of the earlier squares that is kept")
    tau: float = Field(1e-3, gt=0, description="adam, yogi: adaptivity, added to the root of the squares")


class ServerOptimizer:
    """Steps from the old state towards the average, Delta = average - old, on all parameters.

    Running statistics are taken as averaged. Weights outside the mask have no memory: what is pruned forgets its
    direction, what grows starts afresh.

    Args:
        settings: which rule.
        space: the parameter space.
    """

    def __init__(self, settings: ServerOptimizerSettings, space: ParameterSpace) -> None:
        self.settings, self.space = settings, space
        remembers, adapts = settings.name != "none", settings.name in ("adam", "yogi")
        device = space.values.device
        self._direction = torch.zeros(space.n_parameters if remembers else 0, device=device)
        self._squares = torch.full((space.n_parameters if adapts else 0,), settings.tau**2, device=device)

    def step(self, old: Tensor, average: Tensor, mask: Mask) -> Tensor:
        """The next state, float32 (total,).

        Args:
            old: float32 (total,), the state that was sent out.
            average: float32 (total,), the clients' average.
            mask: what is active in the average.
        """
        if self.settings.name == "none":
            return average
        settings, parameters = self.settings, slice(0, self.space.n_parameters)
        self._forget(~mask.active)
        delta = average[parameters] - old[parameters]
        if not mask.is_full:
            delta[: self.space.n_prunable].masked_fill_(~mask.active, 0)
        new = average.clone()
        new[parameters] = old[parameters] + settings.lr * self._smoothed(delta)
        new[: self.space.n_prunable].masked_fill_(~mask.active, 0)
        return new

    def _smoothed(self, delta: Tensor) -> Tensor:
        settings = self.settings
        if settings.name == "avgm":
            return self._direction.mul_(settings.beta1).add_(delta).clone()
        self._direction.mul_(settings.beta1).add_(delta, alpha=1 - settings.beta1)
        squares = delta.square()
        if settings.name == "adam":
            self._squares.mul_(settings.beta2).add_(squares, alpha=1 - settings.beta2)
        else:
            self._squares.addcmul_(squares, (self._squares - squares).sign(), value=-(1 - settings.beta2))
        return self._direction / (self._squares.sqrt() + settings.tau)

    def _forget(self, inactive: Tensor) -> None:
        self._direction[: self.space.n_prunable].masked_fill_(inactive, 0)
        if len(self._squares):
            self._squares[: self.space.n_prunable].masked_fill_(inactive, self.settings.tau**2)

    def state(self) -> dict[str, Tensor]:
        """What it remembers, for the checkpoint: float32 (n_parameters,) each, or empty."""
        return {"direction": self._direction, "squares": self._squares}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave. Raises ValueError where a value is impossible."""
        if not all(bool(tensor.isfinite().all()) for tensor in state.values()) or bool((state["squares"] < 0).any()):
            raise ValueError("the server optimiser's memory has impossible values")
        self._direction.copy_(state["direction"])
        self._squares.copy_(state["squares"])
