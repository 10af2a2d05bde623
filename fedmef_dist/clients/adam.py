"""Adam and AdamW as local optimisers, on the same flat vector."""

from math import sqrt

import torch
from torch import Tensor

from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings, Part
from fedmef_dist.sparsity import ParameterSpace


class MaskedAdam(MaskedSGD):
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1), or AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Both moments start from 0 in each client's round and stay nowhere. Where the mask is 0 so are gradient, moments and
    update. AdamW takes ``weight_decay`` from the weights themselves, Adam from the gradient. The formulas are
    torch.optim's, as operations that give the same bits on all parameters at once and on one after the other.
    """

    def __init__(self, space: ParameterSpace, settings: OptimizerSettings) -> None:
        super().__init__(space, settings)
        self._moments: tuple[Tensor, Tensor] | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it holds from step to step beside the parameter space."""
        return (*super().tensors, *(self._moments or ()))

    @property
    def _moves_without_gradient(self) -> bool:
        return True

    @property
    def _penalty(self) -> float:
        return self.settings.weight_decay if self.settings.name == "adam" else 0.0

    def _prepare_state(self) -> None:
        if self._moments is None:
            self._moments = torch.zeros_like(self._parameters), torch.zeros_like(self._parameters)
        for moment in self._moments if self._mask_has_changed() else ():
            self.space.drop_inactive(moment)

    def _move(self, parameters: Tensor, gradient: Tensor, rate: float | Tensor, part: Part) -> None:
        assert self._moments is not None
        own = self.settings
        first, second = (part(moment) for moment in self._moments)
        first.mul_(own.beta1).add_(gradient, alpha=1 - own.beta1)
        second.mul_(own.beta2).addcmul_(gradient, gradient, value=1 - own.beta2)
        if own.name == "adamw" and own.weight_decay:
            parameters.mul_(1 - rate * own.weight_decay)
        # The gradient is not needed any more, and its memory takes the update.
        update = torch.sqrt(second, out=gradient).div_(sqrt(1 - own.beta2**self.passes)).add_(own.epsilon)
        torch.div(first, update, out=update)
        scale = 1 / (1 - own.beta1**self.passes)
        if isinstance(rate, Tensor):
            parameters.addcmul_(update, rate, value=-scale)
        else:
            parameters.sub_(update, alpha=rate * scale)


def local_optimizer(space: ParameterSpace, settings: OptimizerSettings, velocity: Tensor | None = None) -> MaskedSGD:
    """What the settings name, for one client's round; ``velocity`` is SGD's momentum from earlier rounds."""
    return MaskedSGD(space, settings, velocity) if settings.name == "sgd" else MaskedAdam(space, settings)
