"""One step of a client's training on a fixed batch, to be measured."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedmef_dist.clients.adam import local_optimizer
from fedmef_dist.clients.client import Batch, Client
from fedmef_dist.clients.optimizer import OptimizerSettings
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
        keeps_gradient: the gradient of all parameters is there at once, as in rounds whose work reads it.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        optimizer: OptimizerSettings,
        batch: Batch,
        autocast: bool,
        keeps_gradient: bool = False,
    ) -> None:
        self.model, self.space, self.batch = model, space, batch
        self._client = Client(model, space, optimizer, autocast, together=False)  # as a device would, on a GPU too
        self._optimizer = local_optimizer(space, optimizer)
        self._rate = optimizer.lr
        self._in_backward = self._client.steps_in_backward(keeps_gradient)

    def hold_still(self) -> None:
        """Lets the steps to come leave the weights as they are, so that one measures what another did."""
        self._rate = 0.0

    def _forward(self) -> Tensor:
        if not self._in_backward:
            self.space.begin_backward()
        return self._client.loss(self.batch)

    @contextmanager
    def _stepping(self) -> Iterator[Callable[[], None]]:
        """Gives what is to be called after the backward pass."""
        self.model.train()
        if self._in_backward:
            with self._optimizer.in_backward(self._rate) as finish:
                yield finish
        else:
            yield self._update

    def _update(self) -> None:
        self.space.end_backward()
        self._optimizer.step(self._rate)

    def measure(self) -> StepMemory:
        """Its memory, from two steps."""
        with self._stepping() as update:
            state = lambda: (*self.space.tensors, *self._optimizer.tensors)  # noqa: E731
            return measure_step(self.model, self._forward, update, state)

    def trace(self, names: Sequence[str]) -> list[Segment]:
        """When a step takes its memory; on the CPU, and not the first step."""
        with self._stepping() as update:
            return trace_step(self.model, names, self._forward, update)

    def dropped(self) -> Dropped:
        """What pruning drops of the activations, from one forward pass."""
        self.model.train()
        with nothing_recomputed(self.model):
            return measure_dropped(self._forward)

    def loss_gradient(self) -> Tensor:
        """The gradient of all parameters, float32 (n_parameters,), 0 where inactive."""
        self.model.train()
        self.space.begin_backward()
        self._client.loss(self.batch).backward()
        self.space.end_backward()
        gradient = self.space.gradient.clone()
        self.space.drop_inactive(gradient)
        return gradient

    def seconds(self) -> float:
        """Wall time of a step."""
        with self._stepping() as update:
            start = time.perf_counter()
            self._forward().backward()
            update()
            if self.space.values.is_cuda:
                torch.cuda.synchronize(self.space.values.device)
            return time.perf_counter() - start
