"""The whole state of a run: everything that its next round depends on, taken and put back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedmef_dist.runs.checkpoint import (
    Checkpoint,
    RunState,
    check_tensors,
    check_values,
    misfit,
    model_tensors,
    read_model,
    with_prefix,
    without_prefix,
)
from fedmef_dist.sparsity import Mask

if TYPE_CHECKING:
    from fedmef_dist.simulation.loop import Simulation

_METHOD, _OPTIMIZER, _CLIENTS = "method/", "server_optimizer/", "clients/"
Metrics = dict[str, float | int | str]


@dataclass
class Totals:
    """What adds up over the rounds of a run, and survives in its checkpoints."""

    wire_bytes: int = 0
    models_sent: int = 0  # to clients and back
    flops: float = 0.0
    seconds: float = 0.0
    best_accuracy: float = 0.0
    last: Metrics = field(default_factory=dict)


def take_checkpoint(run: "Simulation", tracker_state: dict[str, str], kept: Mapping[str, Tensor]) -> Checkpoint:
    """The run's state after a round; ``kept`` is what clients keep, of all ranks."""
    tensors = {
        **model_tensors(run.space, run.server.values),
        "known_version": torch.from_numpy(run.accounting.wire.known_version),
        "first_mask": run.server.first_mask.to_bits(),
        **with_prefix(_METHOD, run.method.state()),
        **with_prefix(_OPTIMIZER, run.server.optimizer.state()),
        **with_prefix(_CLIENTS, kept),
    }
    state: dict[str, Any] = {
        "round": run.round,
        "mask_version": run.space.mask.version,
        "digest": run.server.digest(),
        "costs": run.costs.sums.tolist(),
        "totals": vars(run.totals),
        "tracker": tracker_state,
        "callbacks": run.callbacks.state(),
    }
    return Checkpoint(tensors, state)


def restore(run: "Simulation", checkpoint: Checkpoint) -> None:
    """Lets the run go on where the checkpoint was taken, on any number of ranks. Raises UserError for another run's."""
    state = check_values(checkpoint, RunState, checkpoint.state)
    kept = run.client_states.blank() if run.client_states is not None else {}
    run.server.set_state(*read_model(checkpoint, run.space))
    check_tensors(checkpoint, take_checkpoint(run, {}, kept).tensors)
    tensors = checkpoint.tensors
    run.server.first_mask = Mask.from_bits(tensors["first_mask"], run.space.n_prunable, 0, run.group.device)
    run.accounting.wire.known_version = tensors["known_version"].numpy().copy()
    run.costs.sums = np.array(state.costs)
    run.totals = check_values(checkpoint, Totals, state.totals)
    try:
        run.method.restore(without_prefix(_METHOD, tensors))
        run.server.optimizer.restore(without_prefix(_OPTIMIZER, tensors))
        run.callbacks.restore(state.callbacks)
        if run.client_states is not None:
            run.client_states.restore(without_prefix(_CLIENTS, tensors))
    except ValueError as error:
        raise misfit(checkpoint, f"{run.config.method.name}: {error}") from None
    if run.server.digest() != state.digest:
        raise misfit(checkpoint, "weights and mask have another digest than it says")
    run.round = run.saved_round = state.round
