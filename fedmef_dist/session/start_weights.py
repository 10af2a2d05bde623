"""Weights that a run starts from: of another run, of a file, or torchvision's where they lie on the disk."""

import hashlib
import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.config import Config, foreign_names, to_tree
from fedmef_dist.data.sources import load_dataset
from fedmef_dist.layers.powered import root
from fedmef_dist.models import build_model
from fedmef_dist.models.convert import powers
from fedmef_dist.models.plain import acting_state
from fedmef_dist.models.torchvision_import import import_torchvision
from fedmef_dist.runs.directory import CONFIG, read_configuration
from fedmef_dist.session.saved import checkpoint_of, config_of, fill
from fedmef_dist.simulation.loop import Simulation

_LOG = logging.getLogger(__name__)
_TORCHVISION = "torchvision"
_SHOWN = 4


def take_weights(simulation: Simulation) -> None:
    """Gives a fresh simulation the weights that ``model.start_from`` names, if any; rank 0 reads and tells of them.

    Tensors are taken where the model has one of the same name and shape; the others keep what the seed drew, such as
    the classifier of a network for other classes. Raises UserError where there are none, or none fits.
    """
    config, space = simulation.config, simulation.space
    if config.model.start_from is None:
        return
    if simulation.group.rank == 0:
        line = _load(simulation.model, _read(config), f"model.start_from={config.model.start_from}")
        tell(line)
        _LOG.info(line)
    values = space.values.clone()
    simulation.group.broadcast(values)
    space.load(values)
    simulation.server.values = values


def _read(config: Config) -> Mapping[str, Tensor]:
    """The tensors by name, on the CPU."""
    source = config.model.start_from or ""
    if source.partition(":")[0] == _TORCHVISION:
        return _of_torchvision(config.model.name, source.partition(":")[2])
    path = Path(source)
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir fails where that cannot be told
        return _of_run(path, config)
    if path.suffix != ".safetensors":
        raise UserError(
            "neither a run directory nor a safetensors file"
            if os.path.lexists(path)
            else "there is no such run or file",
            where=f"model.start_from={source}",
            mend="give one, or torchvision; safetensors.torch.save_file writes a state dict",
        )
    return _of_file(path)


def _of_file(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(
            f"the weights cannot be read: {reason}",
            where=f"model.start_from={path}",
            mend="give a file that fedmef-dist export or safetensors has written",
        ) from None


def _of_run(run_dir: Path, config: Config) -> Mapping[str, Tensor]:
    """The newest checkpoint's weights, as they act; foreign code of that run only where this one names it too."""
    try:
        foreign = foreign_names(read_configuration(run_dir))
    except FileNotFoundError:
        foreign = []
    if {*foreign} - {*foreign_names(to_tree(config))}:
        raise UserError(
            f"that run names code from outside of the package: {', '.join(foreign)}",
            where=str(run_dir / CONFIG),
            mend="if you trust it: fedmef-dist export --allow-plugins, and start from the file",
        )
    other = config_of(run_dir, allow_plugins=True)
    checkpoint = checkpoint_of(run_dir)
    dataset = load_dataset(other.data, other.seed)
    size: dict[str, Any] = {"classes": dataset.classes, "shape": dataset.shape, "seed": other.seed}
    model = build_model(other.model, other.resolved_sap, norm=other.norm, alpha=other.weight_power, **size)
    fill(model, checkpoint)
    return acting_state(model)


def _of_torchvision(name: str, weights: str) -> Mapping[str, Tensor]:
    """Published weights, the newest by default, where torch.hub keeps what it has downloaded. Downloads nothing.

    They are pickles. Torch's reader for weights alone makes tensors and plain containers of them, and the file must be
    the one that was published: its name holds the beginning of its SHA-256.
    """
    where = f"model.start_from={_TORCHVISION}{':' if weights else ''}{weights}"
    url = _published(name, weights, where)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"torchvision's weights are not here: {error.strerror}: {path}",
            where=where,
            mend=f"where there is a network: curl -Lo {path.name} {url}; then put it there, or set TORCH_HOME",
        ) from None
    expected = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if expected is None or not hashlib.sha256(data).hexdigest().startswith(expected[1]):
        raise UserError(f"{path} is not what torchvision has published", where=where, mend="download it again")
    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {key: tensor for key, tensor in found.items() if isinstance(tensor, Tensor)}


def _published(name: str, weights: str, where: str) -> str:
    """The address of a model's published weights."""
    models = import_torchvision().models
    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no {name}", where=where, mend="name a run directory or a safetensors file")
    known = models.get_model_weights(name)
    if weights and weights not in known.__members__:
        mend = f"choose one of {', '.join(known.__members__)}" if known.__members__ else "torchvision has none for it"
        raise UserError(f"{name} has no weights {weights!r}", where=where, mend=mend)
    return str((known[weights] if weights else known.DEFAULT).url)


@torch.no_grad()
def _load(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> str:
    """Gives the model what fits, so that its weights act as those do; says what and how much of it."""
    alphas = powers(model)
    own = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    fitting = [name for name, tensor in own.items() if name in weights and weights[name].shape == tensor.shape]
    if not fitting:
        raise UserError(
            "no tensor there has the name and the shape of one of the model",
            where=where,
            mend="start from weights of the same kind of model",
        )
    for name in fitting:
        if not torch.isfinite(weights[name]).all():
            raise UserError(f"{name} is not finite there", where=where, mend="start from other weights")
        own[name].copy_(root(weights[name], alphas[name]) if name in alphas else weights[name])
    left = [name for name in own if name not in fitting]
    share = sum(own[name].numel() for name in fitting) / sum(tensor.numel() for tensor in own.values())
    rest = f"; drawn from the seed: {', '.join(left[:_SHOWN])}" if left else ""
    more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
    return f"note: {where}: {len(fitting)} of {len(own)} tensors, {share:.1%} of the values{rest}{more}"
