"""The trained model of a run as files for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedmef_dist.base.atomic import write_bytes
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config
from fedmef_dist.data.batches import evaluation_batches
from fedmef_dist.data.dataset import Dataset
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.data.text import TextDataset
from fedmef_dist.models import build_model, stock_model
from fedmef_dist.models.plain import acting_state, make_plain
from fedmef_dist.session.saved import checkpoint_of, config_of, fill

_PROBES = 8


def export(run_dir: Path, out: Path, round_number: int | None = None, *, allow_plugins: bool = False) -> None:
    """Writes a checkpoint's model, inactive weights as 0, and prints the names of the files.

    ``out`` has the names of the run's own model, and weights as they act, where a method trains a root of them.
    ``<stem>.torchvision.safetensors`` beside it is for the stock network,
    which is torchvision's model of that name, its first convolution fitted as :func:`stock_model` does it: normalised
    weights are folded into plain ones. It is left out, with a line that says so, where no plain weights give the same
    outputs, as with group normalisation.

    Args:
        run_dir: a run with a checkpoint.
        out: safetensors file; ``load_state_dict`` of the model, its weights acting as they are, takes its content.
        round_number: whose checkpoint; default: the newest.
        allow_plugins: whether code that the directory's configuration names may be imported.

    Raises:
        UserError: the directory holds no readable run, no such checkpoint, or names foreign code that is not allowed,
            or ``out`` cannot be written.
    """
    config = config_of(run_dir, allow_plugins=allow_plugins)
    checkpoint = checkpoint_of(run_dir, round_number)
    dataset = load_dataset(config.data, config.seed)
    model, stock = _models(config, dataset)
    fill(model, checkpoint)
    about = {"model": config.model.name, "stem": config.model.stem}
    _write(out, acting_state(model), {**about, "norm": config.norm})
    samples = evaluation_batches(dataset.test, dataset, batch_size=_PROBES, rank=0, world_size=1, device="cpu")
    plain = out.with_name(f"{out.stem}.torchvision.safetensors")
    if make_plain(model, stock, next(samples)[0]):
        _write(plain, stock.state_dict(), about)
    else:
        print(f"{plain} was not written: the stock {config.model.name} cannot compute what norm {config.norm} does")


def _models(config: Config, dataset: Dataset | TextDataset) -> tuple[nn.Module, nn.Module]:
    """The run's model and the stock network that it was converted from."""
    size: dict[str, Any] = {"classes": dataset.classes, "shape": dataset.shape, "seed": config.seed}
    model = build_model(config.model, config.resolved_sap, norm=config.norm, alpha=config.weight_power, **size)
    return model, stock_model(config.model, **size)


def _write(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    # The tensors of a parameter space are views of one storage, convolutions channels_last.
    data = save({name: tensor.contiguous().clone() for name, tensor in state.items()}, metadata)
    try:
        write_bytes(path, data)
    except OSError as error:
        raise UserError(
            f"cannot write the file: {error.strerror}", where=str(path), mend="choose another --out"
        ) from None
    print(path)
