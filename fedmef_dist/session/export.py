"""The trained model of a run as files for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedmef_dist.base.atomic import sync_directory
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, foreign_names, parse_config
from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.data.text import TextDataset
from fedmef_dist.models import build_model, prunable_weights, stock_model
from fedmef_dist.models.plain import make_plain
from fedmef_dist.runs.checkpoint import Checkpoint, CheckpointStore
from fedmef_dist.runs.directory import CONFIG, read_configuration
from fedmef_dist.runs.snapshot import restore
from fedmef_dist.simulation.global_state import GlobalState, MaskPart, ModelPart
from fedmef_dist.sparsity import ParameterSpace

_PROBES = 8


def export(run_dir: Path, out: Path, *, allow_plugins: bool = False) -> None:
    """Writes the newest checkpoint's model, inactive weights as 0, and prints the names of the files.

    ``out`` has the names of the run's own model. ``<stem>.torchvision.safetensors`` beside it is for the stock network,
    which is torchvision's model of that name, its first convolution fitted as :func:`stock_model` does it: normalised
    weights are folded into plain ones. It is left out, with a line that says so, where no plain weights give the same
    outputs, as with group normalisation.

    Args:
        run_dir: a run with a checkpoint.
        out: safetensors file; ``load_state_dict`` of the model takes its content.
        allow_plugins: whether code that the directory's configuration names may be imported.

    Raises:
        UserError: the directory holds no readable run or names foreign code that is not allowed, or ``out`` cannot be
            written.
    """
    config = config_of(run_dir, allow_plugins=allow_plugins)
    checkpoint = _newest(run_dir, config)
    dataset = load_dataset(config.data, config.seed)
    model, stock = _models(config, dataset)
    _fill(model, checkpoint)
    about = {"model": config.model.name, "stem": config.model.stem}
    _write(out, model.state_dict(), {**about, "norm": config.norm})
    samples = evaluation_batches(dataset.test, dataset, batch_size=_PROBES, rank=0, world_size=1, device="cpu")
    plain = out.with_name(f"{out.stem}.torchvision.safetensors")
    if make_plain(model, stock, next(samples)[0]):
        _write(plain, stock.state_dict(), about)
    else:
        print(f"{plain} was not written: the stock {config.model.name} cannot compute what norm {config.norm} does")


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


def _newest(run_dir: Path, config: Config) -> Checkpoint:
    store = CheckpointStore(run_dir, config.checkpoint.keep)
    if not store.rounds():
        raise UserError("the run has no checkpoint", where=str(run_dir), mend="let it reach one first")
    return store.load_newest()


def _models(config: Config, dataset: Dataset | TextDataset) -> tuple[nn.Module, nn.Module]:
    """The run's model and the stock network that it was converted from."""
    size: dict[str, Any] = {"classes": dataset.classes, "shape": dataset.shape, "seed": config.seed}
    model = build_model(config.model, config.resolved_sap, norm=config.norm, **size)
    return model, stock_model(config.model, **size)


def _fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    space = ParameterSpace(model, prunable_weights(model))
    state = GlobalState(space)
    # Normalised layers count their active weights: they need the mask too.
    restore(checkpoint, {"mask": MaskPart(state), "model": ModelPart(state)}, whole=False)


def _write(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    # The tensors of a parameter space are views of one storage, convolutions channels_last.
    data = save({name: tensor.contiguous().clone() for name, tensor in state.items()}, metadata)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"cannot write the file: {error.strerror}", where=str(path), mend="choose another --out"
        ) from None
    print(path)
