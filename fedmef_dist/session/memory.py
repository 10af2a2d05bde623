"""The memory keys of a run's metrics and summary."""

import numpy as np

from fedmef_dist.data.batches import Batch, client_batches
from fedmef_dist.data.shapes import Shape
from fedmef_dist.devices.device_memory import device_memory
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.simulation.footprint import dense_fedavg, modelled_step, own_setting, training_step
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.tracker import Metrics
from fedmef_dist.wire.ledger import VALUE_BYTES


class RunMemory:
    """One training step of a run's model, and of dense FedAvg's on the same batch: measured once, when it is made.

    Leaves the simulation's model with the server's state.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._config, self._space = simulation.config, simulation.space
        shape = Shape(simulation.dataset.shape, simulation.dataset.classes)
        batch = _full_batch(simulation)
        self._activations, _ = modelled_step(self._config, own_setting(self._config), shape, len(batch[0]))
        self._space.load(simulation.server.values)
        autocast = self._config.runtime.precision == "bf16"
        self._own = TrainingStep(simulation.model, self._space, self._config.optimizer, batch, autocast).measure()
        self._space.load(simulation.server.values)
        dense = training_step(self._config, dense_fedavg(self._config), shape, batch)
        self._dense = dense.measure()
        self._dense_state = dense.space.total
        self._counts = self._space.layer_counts()
        self._news = self.metrics()

    def metrics(self) -> Metrics:
        """Memory of the run's own step, modelled with the current mask and measured."""
        return {
            **self._modelled(),
            "memory/activation_bytes": self._own.activation_bytes,
            "memory/peak_bytes": self._own.peak_bytes,
        }

    def news(self) -> Metrics:
        """What was not told before: at first all metrics, later the modelled ones where the layers' counts changed."""
        counts = self._space.layer_counts()
        if counts != self._counts:
            self._counts = counts
            self._news |= self._modelled()
        news, self._news = self._news, {}
        return news

    def _modelled(self) -> Metrics:
        memory = device_memory(self._space, self._space.layer_counts(), self._config.optimizer, self._activations)
        return {"memory/device_bytes": memory.total}

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
