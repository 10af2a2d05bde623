"""How a run begins: from its own checkpoint, as a fork of another run, from given weights, or from its seed alone."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedmef_dist.base.atomic import write_bytes
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import to_tree
from fedmef_dist.runs.checkpoint import Checkpoint, CheckpointStore, broadcast
from fedmef_dist.runs.directory import Resume, read_configuration, round_to_resume
from fedmef_dist.runs.snapshot import contents, restore, take
from fedmef_dist.session.saved import checkpoint_of
from fedmef_dist.session.start_weights import take_weights
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.lines import METRICS, head_of, lines_until

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a run goes on from; without a checkpoint it is a fresh one.

    Attributes:
        checkpoint: of the run itself, or of the one that it is forked from.
        lines: of metrics, which a fork takes over; known to rank 0 alone.
        done: lines of metrics of the run's own earlier rounds; known to rank 0 alone.
    """

    checkpoint: Checkpoint | None = None
    lines: Sequence[bytes] | None = None
    done: Sequence[bytes] = ()

    def keep(self, store: CheckpointStore) -> None:
        """Writes what a fork has taken over into its own directory, so that it needs the other one no more.

        The checkpoint comes last: a start that is killed before begins the fork anew. Raises UserError where it cannot
        be written.
        """
        if self.lines is None or self.checkpoint is None:
            return
        try:
            write_bytes(store.run_dir / METRICS, b"".join(self.lines))
            store.save(self.checkpoint)
        except OSError as error:
            raise UserError(
                f"the fork cannot be written: {error.strerror}", where=str(store.run_dir), mend="choose --run-dir"
            ) from None
        store.last = self.checkpoint.state["round"]


def begin(simulation: Simulation, store: CheckpointStore, resume: Resume) -> Beginning:
    """Brings the simulation to where it goes on; rank 0 alone looks at files. Writes nothing.

    Raises UserError where the directory, the run to fork or the weights to start from do not fit.
    """
    found = _find(simulation, store, resume) if simulation.group.rank == 0 else Beginning()
    checkpoint = broadcast(found.checkpoint, simulation.group)
    if checkpoint is None:
        take_weights(simulation)
        simulation.start()
        return found
    try:
        restore(checkpoint, simulation.parts)
    except UserError as error:
        raise error if found.lines is None else _unfit(simulation, error) from None
    simulation.round = checkpoint.state["round"]
    return replace(found, checkpoint=checkpoint)


def _find(simulation: Simulation, store: CheckpointStore, resume: Resume) -> Beginning:
    config = simulation.config
    if round_to_resume(store.run_dir, to_tree(config), resume, config.begins_as) is not None:
        checkpoint = store.load_newest()
        state = contents(checkpoint)
        # Refuses before anything is written.
        return Beginning(checkpoint, done=lines_until(store.run_dir / METRICS, state.round, state.tracker))
    return Beginning() if simulation.config.fork is None else _fork(simulation, store.run_dir)


def _fork(simulation: Simulation, run_dir: Path) -> Beginning:
    """The newest checkpoint of the other run, and its metrics until then; nothing of its trackers and callbacks."""
    config, other = simulation.config, Path(simulation.config.fork or "")
    if os.path.realpath(other) == os.path.realpath(run_dir):  # Path.resolve fails at a loop of links
        raise UserError("a run cannot be forked from itself", where=f"fork={other}", mend="choose another --run-dir")
    try:
        tree = read_configuration(other)
    except FileNotFoundError:
        raise UserError("there is no run to fork", where=f"fork={other}", mend="give a run's directory") from None
    method = tree.get("method")
    if not isinstance(method, dict) or method.get("name") != config.method.name:
        raise UserError(
            f"a fork keeps its method, and that run's is not {config.method.name}",
            where=f"fork={other}",
            mend="start from its weights instead: model.start_from",
        )
    checkpoint = checkpoint_of(other)
    state = contents(checkpoint)
    if state.round >= config.federation.rounds:
        raise UserError(
            f"that run has done {state.round} rounds, and federation.rounds={config.federation.rounds}",
            where=f"fork={other}",
            mend="raise federation.rounds",
        )
    lines = lines_until(other / METRICS, state.round, state.tracker)
    _LOG.info("forks %s behind round %d", other, state.round)
    changed = tree.get("server_optimizer") != to_tree(config)["server_optimizer"]
    fresh = ["callbacks", *(["server_optimizer"] if changed else [])]
    return Beginning(_with_fresh(simulation, checkpoint, fresh, head_of(lines).state(b"")), lines)


def _with_fresh(
    simulation: Simulation, checkpoint: Checkpoint, names: Sequence[str], tracker: dict[str, str]
) -> Checkpoint:
    """The checkpoint with these parts as they are before the first round."""
    fresh = take(checkpoint.state["round"], {name: simulation.parts[name] for name in names}, tracker)
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if name.partition("/")[0] not in names}
    state = {**fresh.state, "parts": {**checkpoint.state["parts"], **fresh.state["parts"]}}
    return Checkpoint({**kept, **fresh.tensors}, state, checkpoint.where)


def _unfit(simulation: Simulation, error: UserError) -> UserError:
    what = error.what.removeprefix("the checkpoint is not of this run: ")
    return UserError(
        f"these settings do not fit the run to fork: {what}",
        where=f"fork={simulation.config.fork}",
        mend="keep model, data and clients as they are there, or start from its weights: model.start_from",
    )
