"""What one simulated client does in a round."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import SupportsFloat

import torch
from torch import Tensor, nn

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.clients.adam import local_optimizer
from fedmef_dist.clients.kept_state import Keepsake
from fedmef_dist.clients.loss import cross_entropy
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.clients.passes import Passes, Recorder
from fedmef_dist.clients.plan import LocalClient, RoundPlan
from fedmef_dist.clients.slots import Steps, all_steps
from fedmef_dist.clients.tiers import held_upload
from fedmef_dist.cluster.gpu import Stopwatch
from fedmef_dist.data.batches import Batch
from fedmef_dist.layers.activation_pruning import forget_thresholds, prunings
from fedmef_dist.layers.kernels import on_host
from fedmef_dist.layers.model_filters import ModelFilters
from fedmef_dist.layers.random import RandomLayer, set_generator
from fedmef_dist.layers.room import overflowed, without_waiting
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.traffic import Upload


class OutOfRoomError(Exception):
    """A client's packed activations had no room, its result is wrong: it has to be trained again with ``waits``."""


@dataclass(frozen=True)
class ClientReport:
    """What a client gives back.

    Attributes:
        values: float32, its state packed as :meth:`ParameterSpace.pack` does it.
        loss: mean training loss over its samples and epochs; away from the CPU float64, 0-dim, not waited for.
        seconds: time it took; a number once the device has done all of it.
        uploads: what else it sends, by the name of the collection.
        varied_bytes: encoded bytes of those collections whose length differs from client to client.
    """

    values: Tensor
    loss: float | Tensor
    seconds: SupportsFloat
    uploads: dict[str, Upload]
    varied_bytes: int = 0


class Client:
    """Trains the clients of a rank one after another on one model.

    Args:
        model: its parameters live in ``space``.
        space: the flat vector.
        optimizer: settings of the local SGD.
        autocast: run forward passes in bfloat16.
        recorder: of forward and backward passes, to be replayed; None: nothing is recorded.
        together: all filters may be normalised at once where that saves launches; it costs memory
            (:mod:`~fedmef_dist.layers.model_filters`).
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        optimizer: OptimizerSettings,
        autocast: bool,
        recorder: Recorder | None = None,
        together: bool = True,
    ) -> None:
        self.model = model
        self.space = space
        self.optimizer = optimizer
        self.autocast = autocast
        self._filters = ModelFilters(model, space) if together else None
        self._passes = Passes(model, space, self.loss, recorder)
        # Found once: to look through a small model takes as long as to train it for a while.
        self._pruned = [module for module in model.modules() if prunings([module])]
        self._draws = any(isinstance(module, RandomLayer) for module in model.modules())

    @property
    def may_lack_room(self) -> bool:
        """Whether :meth:`train` may raise OutOfRoomError."""
        return not on_host(self.space.values) and any(pruning.packs for pruning in prunings(self._pruned))

    def draw_for(self, seed: int, round: int, client: int) -> None:
        """Lets layers that draw random numbers draw for this client from here on, whatever they have drawn before."""
        if self._draws:
            where = self.space.values.device if self.space.values.device.type == "cuda" else "cpu"
            set_generator(self.model, torch_generator(seed, "layers", round, client, device=where))

    def train(
        self,
        plan: RoundPlan,
        batches: Iterator[Batch],
        steps: int,
        rate: float,
        client: LocalClient | None = None,
        state: Keepsake | None = None,
        more: Iterator[Batch] | None = None,
        waits: bool = False,
    ) -> ClientReport:
        """One client's round, from the state that the plan broadcasts. The space keeps its mask.

        Args:
            plan: what the method asks for.
            batches: at least ``steps`` batches, and behind them those on which an adjusting round takes its gradient.
            steps: SGD steps to make.
            rate: the round's learning rate.
            client: who trains, and what it has received.
            state: what the client has kept from earlier rounds; changed in place.
            more: the batches of the work's extra passes.
            waits: the host waits for the device where only that tells how much room what is packed needs.

        Raises:
            OutOfRoomError: it did not wait, and there was too little. ``state`` is changed nevertheless.
        """
        return all_steps(self.training(plan, batches, steps, rate, client, state, more, waits))

    def training(
        self,
        plan: RoundPlan,
        batches: Iterator[Batch],
        steps: int,
        rate: float,
        client: LocalClient | None = None,
        state: Keepsake | None = None,
        more: Iterator[Batch] | None = None,
        waits: bool = False,
    ) -> Steps[ClientReport]:
        """What :meth:`train` does, with a pause behind each step, in which other clients may train on other models."""
        watch = Stopwatch(self.space.values.device)
        mask, client, state = self.space.mask, client or LocalClient(), state or Keepsake()
        rooms = [pruning.room for pruning in prunings(self._pruned)]
        try:
            with self._passes.nothing_recorded() if waits else without_waiting(rooms):
                packed, loss, uploads = yield from self._train(plan, batches, steps, rate, client, state)
                if more is not None:
                    plan.work.train_more(more, rate, self.loss)
            if overflowed(rooms):
                raise OutOfRoomError
        finally:
            # The next client, and a checkpoint where this one broke off, need the round's own mask.
            if self.space.mask.version != mask.version:
                self.space.set_mask(mask)
        return ClientReport(packed, loss, watch.stop(), uploads)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the model on one batch, 0-dim."""
        inputs, labels = batch
        autocast = torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.autocast)
        with autocast, self._filters.acting() if self._filters is not None else nullcontext():
            return cross_entropy(self.model(inputs), labels)

    def _train(
        self,
        plan: RoundPlan,
        batches: Iterator[Batch],
        steps: int,
        rate: float,
        client: LocalClient,
        state: Keepsake,
    ) -> Steps[tuple[Tensor, float | Tensor, dict[str, Upload]]]:
        space, work, sent = self.space, plan.work, self.space.mask
        space.load(plan.values)
        work.begin(client)
        state.enter(space)
        if not self.model.training:
            self.model.train()
        forget_thresholds(self._pruned)
        optimizer = local_optimizer(space, self.optimizer, state.velocity)
        loss = yield from self._descend(optimizer, islice(batches, steps), steps, rate, plan)
        state.leave(space)
        packed = space.pack(space.values, plan.returns_weights).clone()
        held = held_upload(plan, space, sent)
        gradient = self._gradient(islice(batches, work.gradient_batches), plan)
        if plan.round_mask is not None and plan.round_mask is not space.mask:
            space.set_mask(plan.round_mask)  # what grows is inactive in the server's model, not only here
        uploads = work.uploads(gradient) | held
        # What is sent may be a part of the space, which is used on.
        return packed, loss, {name: upload.clone() for name, upload in uploads.items()}

    def steps_in_backward(self, reads_gradient: bool) -> bool:
        """Whether the optimiser's step is a part of the backward pass, so that no gradient of all parameters is kept.

        On a CPU, where nobody reads it; elsewhere one operation on all parameters costs one launch.
        """
        return not reads_gradient and self.space.values.device.type == "cpu" and not self._passes.records

    def _descend(
        self, optimizer: MaskedSGD, batches: Iterator[Batch], steps: int, rate: float, plan: RoundPlan
    ) -> Steps[float | Tensor]:
        total, samples = torch.zeros((), device=self.space.values.device), 0
        with (
            optimizer.in_backward(rate) if self.steps_in_backward(plan.work.reads_gradient) else nullcontext() as finish
        ):
            for step, batch in enumerate(batches):
                total += (self._passes.run(batch) if finish is None else self._passes.compute(batch)) * len(batch[1])
                samples += len(batch[1])
                if finish is None:
                    optimizer.step(plan.work.prepare_step(step, steps, rate))
                else:
                    finish()
                yield
        mean = total.double() / samples
        return mean.item() if mean.device.type == "cpu" else mean

    def _gradient(self, batches: Iterator[Batch], plan: RoundPlan) -> Tensor | None:
        """The mean gradient of all prunable positions, float32 (n_prunable,); None where the plan wants none."""
        if not plan.work.gradient_batches:
            return None
        self.space.begin_backward()
        count = 0
        for batch in batches:
            self.loss(batch).backward()
            count += 1
        self.space.end_backward()
        return self.space.gradient[: self.space.n_prunable] / max(count, 1)
