"""What the server makes of the clients' average: takes it, or steps towards it with a memory of earlier rounds.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: "Adaptive Federated Optimization", ICLR 2021, arXiv
2003.00295, algorithm 2 (FedAdam, FedYogi); Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification", 2019, arXiv 1909.06335 (FedAvgM).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.sparsity import Mask, ParameterSpace

# Which keys beside its name a rule reads.
_KEYS = {
    "none": (),
    "avgm": ("lr", "beta1"),
    "adam": ("lr", "beta1", "beta2", "tau"),
    "yogi": ("lr", "beta1", "beta2", "tau"),
}


class ServerOptimizerSettings(Settings):
    """Section ``server_optimizer``: how the server uses the clients' average, whatever the method."""

    name: Literal["none", "avgm", "adam", "yogi"] = Field("none", description="none takes the average as it is")
    lr: float = Field(
        1.0,
        gt=0,
        description="avgm: 0.1 to 1, whose steps add up to lr / (1 - beta1); adam, yogi: 0.001 to 0.1, about how far a "
        "weight moves in a round",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="avgm, adam, yogi: share of the earlier direction that is kept")
    beta2: float = Field(0.99, ge=0, lt=1, description="adam, yogi: share of the earlier squares that is kept")
    tau: float = Field(1e-3, ge=1e-8, description="adam, yogi: adaptivity, added to the root of the squares")

    @model_validator(mode="after")
    def _keys_fit_rule(self) -> "ServerOptimizerSettings":
        for key, field in ServerOptimizerSettings.model_fields.items():
            if key not in ("name", *_KEYS[self.name]) and getattr(self, key) != field.default:
                raise ValueError(f"{key} is given although the rule {self.name} does not use it; leave it out")
        return self


class ServerOptimizer:
    """Steps from the old state towards the average, Delta = average - old, on all parameters.

    Running statistics are taken as averaged. Weights outside the mask have no memory: what is pruned forgets its
    direction, what grows starts afresh. There is no bias correction, as in the paper: the squares start at tau^2.

    Every rank takes the same step for itself. So each operation rounds once, which any processor does alike; a fused
    multiplication and addition would not be.

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
            old: float32 (total,), the state that was sent out; its mask is still that of the space.
            average: float32 (total,), the clients' average.
            mask: what is active in the average and the next state.
        """
        if self.settings.name == "none":
            return average
        settings, parameters = self.settings, slice(0, self.space.n_parameters)
        self._forget(~self.space.mask.active)
        delta = average[parameters] - old[parameters]
        if not mask.is_full:
            delta[: self.space.n_prunable].masked_fill_(~mask.active, 0)
        new = average.clone()
        new[parameters] = old[parameters] + self._smoothed(delta) * settings.lr
        new[: self.space.n_prunable].masked_fill_(~mask.active, 0)
        return new

    def _smoothed(self, delta: Tensor) -> Tensor:
        """The direction of the step, float32 (n_parameters,), once ``delta`` has joined the memory."""
        settings = self.settings
        if settings.name == "avgm":
            return self._direction.mul_(settings.beta1).add_(delta)
        self._direction.mul_(settings.beta1).add_(delta * (1 - settings.beta1))
        squares = delta.square()
        if settings.name == "adam":
            self._squares.mul_(settings.beta2).add_(squares * (1 - settings.beta2))
        else:
            self._squares.sub_((self._squares - squares).sign() * squares * (1 - settings.beta2))
        # PyTorch's root of a float32 is the last bit off on some processors; that of a float64, rounded, is right.
        return self._direction / (self._squares.double().sqrt().float() + settings.tau)

    def _forget(self, inactive: Tensor) -> None:
        self._direction[: self.space.n_prunable].masked_fill_(inactive, 0)
        if len(self._squares):
            self._squares[: self.space.n_prunable].masked_fill_(inactive, self.settings.tau**2)

    def state(self) -> dict[str, Tensor]:
        """What it remembers, for the checkpoint: float32 (n_parameters,) each."""
        memory = {"direction": self._direction, "squares": self._squares}
        return {name: tensor for name, tensor in memory.items() if len(tensor)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state` gave, all of it finite. Raises ValueError where a value is impossible."""
        for name, tensor in self.state().items():
            if name == "squares" and bool((state[name] < 0).any()):
                raise ValueError("the server optimiser remembers a square below 0")
            tensor.copy_(state[name])
