"""What a run directory holds for others: its configuration, its checkpoints, the model in one of them."""

from pathlib import Path

from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, foreign_names, parse_config
from fedmef_dist.models import prunable_weights
from fedmef_dist.runs.checkpoint import Checkpoint, CheckpointStore
from fedmef_dist.runs.directory import CONFIG, read_configuration
from fedmef_dist.runs.snapshot import restore
from fedmef_dist.simulation.global_state import GlobalState, MaskPart, ModelPart
from fedmef_dist.sparsity import ParameterSpace


def config_of(run_dir: Path, *, allow_plugins: bool) -> Config:
    """The configuration that a run directory holds.

    Args:
        run_dir: the directory; whoever wrote it need not be who reads it.
        allow_plugins: whether code that it names may be imported.

    Raises:
        UserError: it holds none, or names foreign code that is not allowed.
    """
    try:
        tree = read_configuration(run_dir)
    except FileNotFoundError:
        raise UserError(
            f"not a run directory: it has no {CONFIG}", where=str(run_dir), mend="give a run's directory"
        ) from None
    path = run_dir / CONFIG
    foreign = foreign_names(tree)
    if foreign and not allow_plugins:
        raise UserError(
            f"the run names code from outside of the package: {', '.join(foreign)}",
            where=str(path),
            mend="add --allow-plugins if you trust it: it is then imported and run",
        )
    return parse_config(tree, str(path))


def checkpoint_of(run_dir: Path, round_number: int | None = None) -> Checkpoint:
    """The checkpoint of a round, or the newest one that is whole.

    Raises UserError where there is none, or it is damaged.
    """
    store = CheckpointStore(run_dir, keep=1)
    rounds = store.rounds()
    if not rounds:
        raise UserError("the run has no checkpoint", where=str(run_dir), mend="let it reach one first")
    if round_number is None:
        return store.load_newest()
    if round_number not in rounds:
        saved = ", ".join(map(str, rounds))
        raise UserError(
            f"there is no checkpoint of round {round_number}",
            where=str(run_dir),
            mend=f"choose one of {saved}; checkpoint.keep says how many a run keeps",
        )
    return store.load(round_number)


def fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Gives a run's model the weights and the mask of its checkpoint. Raises UserError where it is another model's."""
    state = GlobalState(ParameterSpace(model, prunable_weights(model)))
    # Normalised layers count their active weights: they need the mask too.
    restore(checkpoint, {"mask": MaskPart(state), "model": ModelPart(state)}, whole=False)
