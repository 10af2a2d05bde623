"""The trained model of a run as a file for other programs."""

from pathlib import Path

from fedmef_dist.atomic import sync_directory
from fedmef_dist.checkpoint import CheckpointStore
from fedmef_dist.config import Config, parse_config, read_tree
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.errors import UserError
from fedmef_dist.models import build_model, prunable_weights
from fedmef_dist.sparsity import ParameterSpace


def export(run_dir: Path, out: Path) -> None:
    """Writes the newest checkpoint's weights under the names of the model's state_dict, inactive ones as 0.

    Args:
        run_dir: a run with a checkpoint.
        out: safetensors file; ``load_state_dict`` of the model takes its content.

    Raises:
        UserError: the directory holds no readable run, or ``out`` cannot be written.
    """
    from safetensors.torch import save_file

    config = _config_of(run_dir)
    store = CheckpointStore(run_dir, config.checkpoint.keep)
    if not store.rounds():
        raise UserError(f"the run has no checkpoint\nwhere: {run_dir}\nmend: let it reach one first")
    checkpoint = store.load(store.rounds()[-1])
    dataset = load_dataset(config.data, config.seed)
    channels, size, _ = dataset.train.images.shape[1:]
    model = build_model(
        config.model,
        config.resolved_sap,
        norm=config.norm,
        classes=dataset.classes,
        channels=channels,
        image_size=size,
        seed=config.seed,
    )
    ParameterSpace(model, prunable_weights(model)).load(checkpoint.tensors["values"])
    tensors = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_file(tensors, partial, metadata={"model": config.model.name, "norm": config.norm})
        partial.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise UserError(f"cannot write the file: {error}\nwhere: {out}\nmend: choose --out") from None


def _config_of(run_dir: Path) -> Config:
    path = run_dir / "config.yaml"
    try:
        return parse_config(read_tree(path.read_text(encoding="utf-8"), str(path)), str(path))
    except OSError as error:
        raise UserError(f"not a run directory: {error.strerror}\nwhere: {path}\nmend: give a run's directory") from None
