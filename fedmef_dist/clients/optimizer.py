"""Local optimisation: SGD as a few operations on the flat vector, and the learning rate over rounds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import cos, pi
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fedmef_dist.base.settings import Settings
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.space import Slice

Part = Callable[[Tensor], Tensor]


class OptimizerSettings(Settings):
    """Section ``optimizer``: what the clients train with, and its learning rate over rounds."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="local optimiser; Adam wants a smaller lr")
    lr: float = Field(0.01, gt=0, le=1000, description="base learning rate, eta_0")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd, within a client's round; starts at 0")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="L2 coefficient on all parameters; of adamw a decay")
    prox_mu: float = Field(
        0.0, ge=0, le=10**6, description="FedProx's pull towards the round's global model (arXiv 1812.06127)"
    )
    schedule: Literal["exponential", "cosine", "constant"] = Field(
        "exponential", description="learning rate over rounds"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="of adam and adamw, decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="of adam and adamw, decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, le=1, description="of adam and adamw, keeps the denominator from 0")
    decay: float = Field(0.998, gt=0, le=1, description="factor for each round of the exponential schedule")

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> "OptimizerSettings":
        if self.name != "sgd" and self.momentum:
            raise ValueError(f"momentum is for sgd; {self.name} has beta1 in its place")
        return self

    @property
    def states(self) -> int:
        """Vectors of one number a parameter that are held from step to step: moments or momentum, FedProx's origin."""
        moments = 2 if self.name != "sgd" else int(self.momentum > 0)
        return moments + (self.prox_mu > 0)

    def rate(self, round: int, rounds: int) -> float:
        """Learning rate of a round, counted from 1."""
        done = round - 1
        if self.schedule == "exponential":
            return self.lr * self.decay**done
        if self.schedule == "cosine":
            return self.lr * (1 + cos(pi * done / rounds)) / 2
        return self.lr


def _whole(flat: Tensor) -> Tensor:
    return flat


class MaskedSGD:
    """SGD over the active weights of a :class:`ParameterSpace`; a masked position never becomes non-zero.

    One object serves one client's local training. ``velocity``, float32 (n_parameters,), is its momentum from earlier
    rounds, which is changed in place; None starts from 0.

    Attributes:
        passes: number of the step that goes on, from 1.
    """

    def __init__(self, space: ParameterSpace, settings: OptimizerSettings, velocity: Tensor | None = None) -> None:
        self.space = space
        self.settings = settings
        self._parameters = space.values[: space.n_parameters]
        self._origin = self._parameters.clone() if settings.prox_mu else None
        self._velocity = velocity
        self._mask_version = space.mask.version
        self.passes = 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds from step to step beside the parameter space."""
        return tuple(tensor for tensor in (self._origin, self._velocity) if tensor is not None)

    def step(self, rate: float | Tensor) -> None:
        """One update from ``space.gradient``, which it changes. ``rate`` may be a 0-dim tensor on the device."""
        self.passes += 1
        self._prepare_state()
        self.space.drop_inactive(self._with_pull(self._parameters, self.space.gradient, _whole))
        self._move(self._parameters, self.space.gradient, rate, _whole)

    @contextmanager
    def in_backward(self, rate: float | Tensor) -> Iterator[Callable[[], None]]:
        """Inside, each backward pass is a step: a parameter moves as soon as its gradient is there, which then goes.

        The results are those of :meth:`step` to the bit, without a gradient of all parameters at once. Gives a function
        to call after each pass: a parameter that it did not reach has a gradient of 0.

        Raises:
            RuntimeError: one pass brings a parameter two gradients, since two blocks that are computed again share it.
        """
        space, waiting = self.space, set[str]()

        def update(parameter: Tensor, piece: Slice) -> None:
            if piece.name not in waiting:
                raise RuntimeError(f"{piece.name} is in two blocks that are computed again")
            waiting.remove(piece.name)
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            self._update_one(parameter, gradient, rate, piece)

        @torch.no_grad()
        def rest() -> None:
            for piece, parameter in space.parameters:
                if piece.name in waiting:
                    self._update_one(parameter, torch.zeros_like(parameter), rate, piece)

        def finish() -> None:
            if waiting and self._moves_without_gradient:
                rest()
            waiting.update(names)
            self.passes += 1

        space.release_gradient()
        self.passes += 1
        self._prepare_state()
        names = [piece.name for piece, _ in space.parameters]
        waiting.update(names)
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda parameter, piece=piece: update(parameter, piece))
            for piece, parameter in space.parameters
        ]
        try:
            yield finish
        finally:
            for hook in hooks:
                hook.remove()
            self.passes -= 1
            space.release_gradient()

    @property
    def _moves_without_gradient(self) -> bool:
        return bool(self.settings.momentum or self.settings.weight_decay or self._origin is not None)

    def _update_one(self, parameter: Tensor, gradient: Tensor, rate: float | Tensor, piece: Slice) -> None:
        """Moves one parameter; torch calls hooks without gradients."""
        self._with_pull(parameter, gradient, piece.view)
        if piece.stop <= self.space.n_prunable and not self.space.mask.is_full:
            gradient.mul_(piece.view(self.space.mask.active).view(torch.uint8))  # twice as fast as by bools
        self._move(parameter, gradient, rate, piece.view)

    def _with_pull(self, parameters: Tensor, gradient: Tensor, part: Part) -> Tensor:
        """Adds to the gradient what pulls on the weights; ``part`` finds theirs in a flat vector."""
        if self._penalty:
            gradient.add_(parameters, alpha=self._penalty)
        if self._origin is not None:
            mu = self.settings.prox_mu
            gradient.add_(parameters, alpha=mu).sub_(part(self._origin), alpha=mu)
        return gradient

    @property
    def _penalty(self) -> float:
        """Of the weights' squares, in the loss."""
        return self.settings.weight_decay

    def _prepare_state(self) -> None:
        if not self.settings.momentum:
            return
        if self._velocity is None:
            self._velocity = torch.zeros_like(self._parameters)
        if self._mask_has_changed():
            self.space.drop_inactive(self._velocity)

    def _mask_has_changed(self) -> bool:
        """Since the last step: where the client has pruned, momentum would bring back what it removed."""
        before, self._mask_version = self._mask_version, self.space.mask.version
        return before != self._mask_version

    def _move(self, parameters: Tensor, gradient: Tensor, rate: float | Tensor, part: Part) -> None:
        if self.settings.momentum:
            assert self._velocity is not None
            gradient = part(self._velocity).mul_(self.settings.momentum).add_(gradient)
        if isinstance(rate, Tensor):
            parameters.addcmul_(gradient, rate, value=-1)
        else:
            parameters.sub_(gradient, alpha=rate)
