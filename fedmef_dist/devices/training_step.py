"""One step of a client's training on a fixed batch, to be measured."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedmef_dist.clients.client import Batch, Client
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.devices.memory import StepMemory, measure_step
from fedmef_dist.devices.timeline import Segment, trace_step
from fedmef_dist.layers.dropped import Dropped, measure_dropped
from fedmef_dist.layers.recompute import nothing_recomputed
from fedmef_dist.sparsity import ParameterSpace


class TrainingStep:
    """Loss, backward pass and the optimiser's step. Each one changes the weights, until they are held still.

    Args:
        model: its parameters live in ``space``.
        space: the flat vector, with the mask to train with.
        optimizer: settings of the local SGD.
        batch: what is trained on.
        autocast: run the forward pass in bfloat16.
    """

    def __init__(
        self, model: nn.Module, space: ParameterSpace, optimizer: OptimizerSettings, batch: Batch, autocast: bool
    ) -> None:
        self.model, self.space, self.batch = model, space, batch
        self._client = Client(model, space, optimizer, autocast)
        self._sgd = MaskedSGD(space, optimizer)
        self._rate = optimizer.lr

    def hold_still(self) -> None:
        """Lets the steps to come leave the weights as they are, so that one measures what another did."""
        self._rate = 0.0

    def _forward(self) -> Tensor:
        self.space.gradient.zero_()
        return self._client.loss(self.batch)

    def _update(self) -> None:
        self._sgd.step(self._rate)

    def measure(self) -> StepMemory:
        """Its memory, from two steps."""
        self.model.train()
        return measure_step(self.model, self._forward, self._update, lambda: (*self.space.tensors, *self._sgd.tensors))

    def trace(self, names: Sequence[str]) -> list[Segment]:
        """When a step takes its memory; on the CPU, and not the first step."""
        self.model.train()
        return trace_step(self.model, names, self._forward, self._update)

    def dropped(self) -> Dropped:
        """What pruning drops of the activations, from one forward pass."""
        self.model.train()
        with nothing_recomputed(self.model):
            return measure_dropped(self._forward)

    def loss_gradient(self) -> Tensor:
        """The gradient of all parameters, float32 (n_parameters,), 0 where inactive."""
        self.model.train()
        self._forward().backward()
        gradient = self.space.gradient.clone()
        self.space.drop_inactive(gradient)
        return gradient

    def seconds(self) -> float:
        """Wall time of a step."""
        self.model.train()
        start = time.perf_counter()
        self._forward().backward()
        self._update()
        if self.space.values.is_cuda:
            torch.cuda.synchronize(self.space.values.device)
        return time.perf_counter() - start
