"""The memory keys of a run's metrics and summary."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fedmef_dist.base.randomness import torch_generator
from fedmef_dist.data.batches import Batch, client_batches
from fedmef_dist.data.shapes import Shape
from fedmef_dist.devices.device_memory import Activations, device_memory
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.layers.activation_pruning import DENSE
from fedmef_dist.layers.random import set_generator
from fedmef_dist.simulation.footprint import dense_fedavg, modelled_step, own_setting, training_step
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.ledger import VALUE_BYTES

_T = TypeVar("_T")
_MODELLED, _HELD, _PEAK = "memory/device_bytes", "memory/activation_bytes", "memory/peak_bytes"


class RunMemory:
    """One training step of a run's model, and of dense FedAvg's on the same batch: measured once, when it is made.

    Leaves the simulation's model with the server's state.

    Args:
        simulation: the run.
        done: metrics of the rounds that earlier processes of the run have done.
    """

    def __init__(self, simulation: Simulation, done: Sequence[Mapping[str, Any]] = ()) -> None:
        self._config, self._space, self._simulation = simulation.config, simulation.space, simulation
        shape = Shape(simulation.dataset.shape, simulation.dataset.classes)
        batch = _full_batch(simulation)
        setting = own_setting(self._config, simulation.memory_plan)
        self._counts = self._space.layer_counts()
        self._follows = setting.prunes_like_weights

        def activations(counts: list[int]) -> Activations:
            return modelled_step(self._config, setting, shape, len(batch[0]), counts)[0]

        self._model_activations, self._activations = activations, activations(self._counts)
        autocast = self._config.runtime.precision == "bf16"
        work = simulation.method.plan(1, simulation.server.values).work
        self._step = TrainingStep(
            simulation.model, self._space, self._config.optimizer, batch, autocast, keeps_gradient=work.reads_gradient
        )
        self._own, self._stale = self._from_the_servers_state(self._step.measure), False
        prunings = [getattr(module, "pruning", DENSE) for module in simulation.model.modules()]
        self._prunes = any(pruning.ratio or pruning.follows_weights for pruning in prunings)
        dense = training_step(self._config, dense_fedavg(self._config), shape, batch)
        self._dense = dense.measure()
        self._dense_state = dense.space.total
        self._news = self.metrics()
        self._go_on([line for line in done if _MODELLED in line])

    def _go_on(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Takes over what earlier processes have told of memory, if any.

        How much is packed depends on the weights, so that a step behind round 50 takes another amount than one before
        round 1: without this, the summary of a run would say whether it was interrupted.
        """
        measured = [line for line in told if _HELD in line]
        if measured:
            newest = measured[-1]
            self._own = replace(self._own, activation_bytes=newest[_HELD], peak_bytes=newest[_PEAK])
            self._stale = self._follows and newest is not told[-1]  # what was due with the next evaluation still is
            self._news = {}

    def metrics(self) -> Metrics:
        """Memory of the run's own step, modelled with the current mask and measured."""
        return {
            **self._modelled(),
            _HELD: self._own.activation_bytes,
            _PEAK: self._own.peak_bytes,
        }

    def _from_the_servers_state(self, measure: Callable[[], _T]) -> _T:
        """What ``measure`` gives with the server's weights, which the space has again afterwards.

        Dropout draws from a generator of its own; each client brings another.
        """
        set_generator(self._step.model, torch_generator(self._config.seed, "footprint"))
        self._space.load(self._simulation.server.values)
        found = measure()
        self._space.load(self._simulation.server.values)
        return found

    def dropped(self) -> Metrics:
        """What pruning drops of the activations at the server's weights, on the fixed batch: one forward pass."""
        if not self._prunes:
            return {}
        dropped = self._from_the_servers_state(self._step.dropped)
        return {"sap/dropped_mass": dropped.mass, "sap/dropped_nonzeros": dropped.nonzeros}

    def news(self) -> Metrics:
        """What was not told before: at first all metrics, later the modelled ones where the layers' counts changed.

        In rounds with an evaluation also what pruning drops; and where it follows the weights, and these have changed,
        what was measured is measured again.
        """
        every, last = self._config.evaluation.every, self._config.federation.rounds
        is_due = self._simulation.round == last or self._simulation.round % every == 0
        counts = self._space.layer_counts()
        if counts != self._counts:
            self._counts = counts
            if self._follows:
                self._activations, self._stale = self._model_activations(counts), True
            self._news |= self._modelled()
        if is_due and self._stale:
            self._own, self._stale = self._from_the_servers_state(self._step.measure), False
            self._news |= self.metrics()
        news, self._news = self._news, {}
        return news | (self.dropped() if is_due else {})

    def _modelled(self) -> Metrics:
        memory = device_memory(self._space, self._space.layer_counts(), self._config.optimizer, self._activations)
        return {_MODELLED: memory.total, **self._modelled_tiers()}

    def _modelled_tiers(self) -> Metrics:
        """A step of each tier on the simulated device."""
        metrics: Metrics = {}
        for number, tier in enumerate(self._simulation.parts_of_tiers()):
            own = self._space.layer_counts(tier.mask)
            activations = self._model_activations(own) if self._follows and tier.is_part else self._activations
            memory = device_memory(self._space, own, self._config.optimizer, activations)
            metrics[f"tier{number}/device_bytes"] = memory.total
        return metrics

    def dense(self, models_sent: int) -> dict[str, int]:
        """What dense FedAvg would have cost: memory measured on the same batch, wire bytes of as many messages."""
        return {
            "reference/activation_bytes": self._dense.activation_bytes,
            "reference/peak_bytes": self._dense.peak_bytes,
            "reference/wire_bytes": VALUE_BYTES * self._dense_state * models_sent,
        }


def _full_batch(simulation: Simulation) -> Batch:
    config = simulation.config
    indices = np.arange(min(config.federation.batch_size, len(simulation.dataset.train)))
    batches = client_batches(
        simulation.dataset,
        indices,
        batch_size=len(indices),
        epochs=1,
        seed=config.seed,
        round=0,
        client=0,
        augment=False,
        device=simulation.group.device,
    )
    return next(batches)
