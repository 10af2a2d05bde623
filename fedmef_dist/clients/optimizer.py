"""Local optimisation: SGD as a few operations on the flat vector, and the learning rate over rounds."""

from math import cos, pi
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.sparsity import ParameterSpace


class OptimizerSettings(Settings):
    """Section ``optimizer``: the clients' SGD and its learning rate over rounds."""

    name: Literal["sgd"] = Field("sgd", description="local optimiser")
    lr: float = Field(0.01, gt=0, le=1000, description="base learning rate, eta_0")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum within a client's round; starts at 0")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="L2 coefficient on all parameters")
    prox_mu: float = Field(
        0.0, ge=0, le=10**6, description="FedProx's pull towards the round's global model (arXiv 1812.06127)"
    )
    schedule: Literal["exponential", "cosine", "constant"] = Field(
        "exponential", description="learning rate over rounds"
    )
    decay: float = Field(0.998, gt=0, le=1, description="factor for each round of the exponential schedule")

    def rate(self, round: int, rounds: int) -> float:
        """Learning rate of a round, counted from 1."""
        done = round - 1
        if self.schedule == "exponential":
            return self.lr * self.decay**done
        if self.schedule == "cosine":
            return self.lr * (1 + cos(pi * done / rounds)) / 2
        return self.lr


class MaskedSGD:
    """SGD over the active weights of a :class:`ParameterSpace`; a masked position never becomes non-zero.

    One object serves one client's local training. ``velocity``, float32 (n_parameters,), is its momentum from earlier
    rounds, which is changed in place; None starts from 0.
    """

    def __init__(self, space: ParameterSpace, settings: OptimizerSettings, velocity: Tensor | None = None) -> None:
        self.space = space
        self.settings = settings
        self._parameters = space.values[: space.n_parameters]
        self._origin = self._parameters.clone() if settings.prox_mu else None
        self._velocity = velocity
        self._mask_version = space.mask.version

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds from step to step beside the parameter space."""
        return tuple(tensor for tensor in (self._origin, self._velocity) if tensor is not None)

    def step(self, rate: float | Tensor) -> None:
        """One update from ``space.gradient``, which it changes. ``rate`` may be a 0-dim tensor on the device."""
        space, gradient = self.space, self.space.gradient
        if self.settings.weight_decay:
            gradient.add_(self._parameters, alpha=self.settings.weight_decay)
        if self._origin is not None:
            gradient.add_(self._parameters, alpha=self.settings.prox_mu).sub_(self._origin, alpha=self.settings.prox_mu)
        space.drop_inactive(gradient)
        if self.settings.momentum:
            if self._velocity is None:
                self._velocity = torch.zeros_like(gradient)
            # Where the client has pruned, momentum would bring back what it removed.
            if space.mask.version != self._mask_version:
                space.drop_inactive(self._velocity)
                self._mask_version = space.mask.version
            gradient = self._velocity.mul_(self.settings.momentum).add_(gradient)
        if isinstance(rate, Tensor):
            self._parameters.addcmul_(gradient, rate, value=-1)
        else:
            self._parameters.sub_(gradient, alpha=rate)
