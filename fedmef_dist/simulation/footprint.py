"""What a training step of a configuration's model takes in memory under several methods: the command ``memory``."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from fedmef_dist.base.randomness import numpy_generator, torch_generator
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import open_group
from fedmef_dist.config import Config, load_config
from fedmef_dist.data.batches import Batch
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.devices.device_memory import Activations, DeviceMemory, device_memory, model_activations
from fedmef_dist.devices.memory import StepMemory
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.models import build_model, prunable_weights
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask

PRUNE_RATIOS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Setting:
    """What decides a step's memory, beside model and batch: normalisation, activation pruning, share of weights."""

    method: str
    norm: str
    sap: SapSettings
    density: float

    @property
    def prune_ratio(self) -> float:
        """Share of an activation that is not kept; 0 without activation pruning."""
        return self.sap.prune_ratio if self.sap.enabled else 0.0


def own_setting(config: Config) -> Setting:
    """The configuration's."""
    return Setting(config.method.name, config.norm, config.resolved_sap, _density(config))


def dense_fedavg(config: Config) -> Setting:
    """What everything is compared with: all weights, stock normalisation, no activation pruning."""
    return Setting("fedavg", config.model.stock_norm, config.sap.model_copy(update={"enabled": False}), 1.0)


def compared_settings(config: Config) -> list[Setting]:
    """Dense FedAvg, sparse weights with dense activations, FedMef at several ratios; the configuration's own if new.

    Every method without activation pruning has the same ordinary step; ``fedtiny`` stands for all of them.
    """
    sparse = config.method if hasattr(config.method, "density") else FedMefSettings()
    density = sparse.density
    dense = dense_fedavg(config)
    norm = FedMef.preferences.norm or config.model.stock_norm
    pruned = [config.sap.model_copy(update={"enabled": True, "prune_ratio": ratio}) for ratio in PRUNE_RATIOS]
    settings = [
        dense,
        replace(dense, method="fedtiny", density=density),
        *(Setting(FedMefSettings().name, norm, sap, density) for sap in pruned),
    ]
    own = own_setting(config)
    return settings if own in settings else [*settings, own]


def _density(config: Config) -> float:
    return getattr(config.method, "density", 1.0)


def _build(config: Config, setting: Setting, shape: Shape) -> nn.Module:
    return build_model(
        config.model,
        setting.sap,
        norm=setting.norm,
        classes=shape.classes,
        shape=shape.sample,
        seed=config.seed,
    )


def _counts(config: Config, setting: Setting, space: ParameterSpace) -> list[int]:
    """Active weights of each layer. Raises UserError where the density is not to be had."""
    if setting.density == 1:
        return [layer.size for layer in space.layers]
    return layer_counts(space, setting.density, getattr(config.method, "allocation", "erk"))


def modelled_step(
    config: Config, setting: Setting, shape: Shape, batch_size: int | None = None
) -> tuple[Activations, DeviceMemory]:
    """A step on a simulated device, from the layers and shapes alone: nothing is measured or computed.

    Args:
        config: model, optimiser and batch size.
        setting: what is trained.
        shape: of the samples.
        batch_size: another one than the configuration's.

    Raises:
        UserError: model or density are not to be had.
    """
    kind = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
    model = _build(config, setting, shape).to("meta", kind)
    dtype = torch.int64 if shape.is_text else kind
    size = (batch_size or config.federation.batch_size, *shape.sample)
    kept = model_activations(model, torch.empty(size, dtype=dtype, device="meta"))
    space = ParameterSpace(model, prunable_weights(model))
    return kept, device_memory(space, _counts(config, setting, space), config.optimizer, kept)


def training_step(config: Config, setting: Setting, shape: Shape, batch: Batch) -> TrainingStep:
    """A step on ``batch`` and its device, with a random mask.

    Raises:
        UserError: model or density are not to be had.
    """
    model = _build(config, setting, shape).to(batch[0].device)
    space = ParameterSpace(model, prunable_weights(model))
    if setting.density < 1:
        counts = _counts(config, setting, space)
        space.set_mask(space.mask.next(random_mask(space, counts, numpy_generator(config.seed, "mask"))))
    return TrainingStep(model, space, config.optimizer, batch, config.runtime.precision == "bf16")


def random_batch(config: Config, shape: Shape, device: torch.device) -> Batch:
    """A full batch: normally distributed images, float32, channels_last, and labels; or tokens and the next ones."""
    generator = torch_generator(config.seed, "footprint")
    size = config.federation.batch_size
    if shape.is_text:
        tokens = torch.randint(shape.classes, (2, size, *shape.sample), generator=generator).to(device)
        return tokens[0], tokens[1]
    images = torch.randn(size, *shape.sample, generator=generator)
    labels = torch.randint(shape.classes, (size,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last).to(device), labels.to(device)


@dataclass(frozen=True)
class Footprint:
    """One training step, measured and modelled.

    Attributes:
        setting: what was trained.
        measured: what autograd and the allocator say.
        activations: what of it the model of the layers foretells.
        device: the same step on a simulated device.
        seconds: median over some steps.
    """

    setting: Setting
    measured: StepMemory
    activations: Activations
    device: DeviceMemory
    seconds: float

    def modules(self) -> list[dict[str, Any]]:
        """Measured and modelled bytes of each module that keeps anything, in the order of the forward pass."""
        modelled = {module.name: module for module in self.activations.modules}
        measured = {module.name: module for module in self.measured.modules}
        return [
            {
                "name": module.name,
                "kind": module.kind,
                "bytes": measured[module.name].bytes if module.name in measured else 0,
                "modelled_bytes": modelled[module.name].bytes if module.name in modelled else 0,
            }
            for module in {**modelled, **measured}.values()
        ]


def measure(config: Config, device: torch.device, steps: int) -> list[Footprint]:
    """Every compared setting; ``steps`` timed steps of each, one of every setting in turn.

    Raises:
        UserError: model or density are not to be had.
    """
    shape = shape_of(config.data)
    batch = random_batch(config, shape, device)
    settings = compared_settings(config)
    candidates = [training_step(config, setting, shape, batch) for setting in settings]
    memory = [step.measure() for step in candidates]
    seconds = list(zip(*([step.seconds() for step in candidates] for _ in range(steps)), strict=True))
    models = [modelled_step(config, setting, shape) for setting in settings]
    return [
        Footprint(setting, measured, *model, median(times))
        for setting, measured, model, times in zip(settings, memory, models, seconds, strict=True)
    ]


def modelled(config: Config, shape: Shape) -> list[tuple[Setting, DeviceMemory]]:
    """A step of each compared setting on a simulated device, nothing measured; the own one alone if it has no density.

    Raises:
        UserError: model or density are not to be had.
    """
    settings = compared_settings(config) if hasattr(config.method, "density") else [own_setting(config)]
    return [(setting, modelled_step(config, setting, shape)[1]) for setting in settings]


def as_json(config: Config, footprint: Footprint) -> dict[str, Any]:
    """A footprint for programs; bytes and seconds."""
    setting, measured, device = footprint.setting, footprint.measured, footprint.device
    return {
        "method": setting.method,
        "model": config.model.name,
        "norm": setting.norm,
        "batch_size": config.federation.batch_size,
        "density": setting.density,
        "prune_ratio": setting.prune_ratio,
        "activation_bytes": measured.activation_bytes,
        "state_bytes": measured.state_bytes,
        "peak_bytes": measured.peak_bytes,
        "modelled_bytes": device.total,
        "modelled": asdict(device),
        "step_seconds": footprint.seconds,
        "modules": footprint.modules(),
    }


def memory_command(path: Path, overrides: list[str], as_objects: bool, out: Path | None, steps: int) -> None:
    """The command ``memory``. Raises UserError."""
    from fedmef_dist.report.memory import report, save_bars

    config = load_config(path, overrides)
    with open_group(detect(os.environ), config.runtime) as group:
        if group.rank:
            return
        footprints = measure(config, group.device, steps)
    if as_objects:
        print(json.dumps([as_json(config, footprint) for footprint in footprints], indent=2))
    else:
        print(report(footprints, own_setting(config)))
    if out is not None:
        save_bars(footprints, out)
