"""What a training step of a configuration's model takes in memory under several methods."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from fedmef_dist.base.randomness import numpy_generator, torch_generator
from fedmef_dist.config import Config
from fedmef_dist.data.batches import Batch
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.devices.device_memory import Activations, DeviceMemory, device_memory, model_activations
from fedmef_dist.devices.memory import StepMemory
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.layers.dropped import Dropped
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.methods.registry import method_named
from fedmef_dist.methods.sparsyfed import SparsyFed, SparsyFedSettings
from fedmef_dist.models import build_model, prunable_weights
from fedmef_dist.models.plan import MemoryPlan, apply_plan
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask

PRUNE_RATIOS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Setting:
    """What decides a step's memory, in addition to model and batch.

    Attributes:
        method: that trains so.
        norm: normalisation.
        sap: activation pruning, ``enabled`` settled.
        density: share of the weights.
        recompute: whether blocks are computed again.
        plan: the planner's choice, for a model that :func:`planned` describes.
        alpha: prunable weights act as this power of their parameters.
    """

    method: str
    norm: str
    sap: SapSettings
    density: float
    recompute: Literal["none", "blocks"] = "none"
    plan: MemoryPlan | None = None
    alpha: float = 1.0

    @property
    def prune_ratio(self) -> float:
        """Share of an activation that is not kept, the mean where it differs by layer; 0 without activation pruning."""
        if not self.sap.enabled:
            return 0.0
        return 1 - self.density if self.prunes_like_weights else self.sap.prune_ratio

    @property
    def prunes_like_weights(self) -> bool:
        """Whether each layer's input is pruned as much as its weights are."""
        return bool(self.sap.enabled) and self.sap.share == "weights"


def own_setting(config: Config, plan: MemoryPlan | None = None) -> Setting:
    """The configuration's, with the plan that was made for its budget, if it has one."""
    own = Setting(
        config.method.name,
        config.norm,
        config.resolved_sap,
        _density(config),
        config.model.recompute,
        alpha=config.weight_power,
    )
    return own if plan is None else planned(own, plan)


def planned(setting: Setting, plan: MemoryPlan | None = None) -> Setting:
    """The setting in the form to which plans apply: all packed without loss, all blocks recomputed, then the plan."""
    sap = setting.sap.model_copy(update={"enabled": True, "prune_ratio": 0.0, "share": "fixed", "storage": "fp32"})
    return replace(setting, sap=sap, recompute="blocks", plan=plan)


def dense_fedavg(config: Config) -> Setting:
    """What everything is compared with: all weights, stock normalisation, no activation pruning."""
    return Setting(
        "fedavg", config.model.stock_norm, config.sap.model_copy(update={"enabled": False, "share": "fixed"}), 1.0
    )


def compared_settings(config: Config) -> list[Setting]:
    """The arena; the configuration's own setting comes last if it is none of the others.

    Dense FedAvg, the same with its blocks recomputed, sparse weights with dense activations (every method without
    activation pruning has the same ordinary step; ``fedtiny`` stands for all of them), SparsyFed, FedMef's layers with
    nothing packed, packed without loss, that with recomputed blocks, and FedMef at several ratios.
    """
    sparse = config.method if hasattr(config.method, "density") else FedMefSettings()
    density = sparse.density
    dense = dense_fedavg(config)
    norm, name = FedMef.preferences.norm or config.model.stock_norm, FedMefSettings().name
    updates: list[dict[str, Any]] = [
        {"enabled": False},
        {"enabled": True, "prune_ratio": 0.0, "storage": "fp32"},
        *({"enabled": True, "prune_ratio": ratio} for ratio in PRUNE_RATIOS),
    ]
    off, exact, *pruned = (
        Setting(name, norm, config.sap.model_copy(update=update | {"share": "fixed"}), density) for update in updates
    )
    alpha = config.weight_power if config.weight_power != 1 else SparsyFedSettings().alpha
    rival = config.sap.model_copy(update={"enabled": True, "share": SparsyFed.preferences.pruned_share})
    settings = [
        dense,
        replace(dense, recompute="blocks"),
        replace(dense, method="fedtiny", density=density),
        replace(dense, method="sparsyfed", density=density, sap=rival, alpha=alpha),
        off,
        exact,
        replace(exact, recompute="blocks"),
        *pruned,
    ]
    own = own_setting(config)
    return settings if own in settings else [*settings, own]


def _density(config: Config) -> float:
    return getattr(config.method, "density", 1.0)


def prune_like_weights(model: nn.Module, space: ParameterSpace, counts: Sequence[int]) -> None:
    """Sets what layers whose pruning follows their weights keep, for so many active weights in each prunable layer."""
    for layer, count in zip(space.layers, counts, strict=True):
        owner: Any = model.get_submodule(layer.name.rpartition(".")[0])
        if hasattr(owner, "pruning"):
            owner.pruning = owner.pruning.with_weights(count / layer.size)


def build_network(config: Config, setting: Setting, shape: Shape) -> nn.Module:
    """The network that a setting trains. Raises UserError where it is not to be had."""
    model = build_model(
        config.model.model_copy(update={"recompute": setting.recompute}),
        setting.sap,
        norm=setting.norm,
        classes=shape.classes,
        shape=shape.sample,
        seed=config.seed,
        alpha=setting.alpha,
    )
    if setting.plan is not None:
        apply_plan(model, setting.plan)
    return model


def _counts(config: Config, setting: Setting, space: ParameterSpace) -> list[int]:
    """Active weights of each layer. Raises UserError where the density is not to be had."""
    if setting.density == 1:
        return [layer.size for layer in space.layers]
    return layer_counts(space, setting.density, getattr(config.method, "allocation", "erk"))


def modelled_step(
    config: Config,
    setting: Setting,
    shape: Shape,
    batch_size: int | None = None,
    counts: Sequence[int] | None = None,
) -> tuple[Activations, DeviceMemory]:
    """A step on a simulated device, from the layers and shapes alone: nothing is measured or computed.

    Args:
        config: model, optimiser and batch size.
        setting: what is trained.
        shape: of the samples.
        batch_size: another one than the configuration's.
        counts: active weights of each layer; None: those of the setting's density.

    Raises:
        UserError: model or density are not to be had.
    """
    kind = torch.bfloat16 if config.runtime.precision == "bf16" else torch.float32
    model = build_network(config, setting, shape).to("meta")
    dtype = torch.int64 if shape.is_text else kind
    size = (batch_size or config.federation.batch_size, *shape.sample)
    space = ParameterSpace(model, prunable_weights(model))
    counts = counts or _counts(config, setting, space)
    prune_like_weights(model, space, counts)
    # Only now, as the parameters in a space are float32.
    kept = model_activations(model.to(kind), torch.empty(size, dtype=dtype, device="meta"))
    return kept, device_memory(space, counts, config.optimizer, kept)


def training_step(
    config: Config, setting: Setting, shape: Shape, batch: Batch, *, keeps_gradient: bool = False
) -> TrainingStep:
    """A step on ``batch`` and its device, with a random mask.

    With ``keeps_gradient`` it is one of a round in which the method reads the gradient of all parameters.

    Raises:
        UserError: model or density are not to be had.
    """
    model = build_network(config, setting, shape).to(batch[0].device)
    space = ParameterSpace(model, prunable_weights(model))
    if setting.density < 1:
        counts = _counts(config, setting, space)
        space.set_mask(space.mask.next(random_mask(space, counts, numpy_generator(config.seed, "mask"))))
    autocast = config.runtime.precision == "bf16"
    return TrainingStep(model, space, config.optimizer, batch, autocast, keeps_gradient)


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
        seconds: of each timed step.
        cosine: of the active weights' gradient to that of the same network with nothing packed or recomputed; None
            where the whole gradient is the same to the bit.
        dropped: what pruning drops of the activations.
    """

    setting: Setting
    measured: StepMemory
    activations: Activations
    device: DeviceMemory
    seconds: tuple[float, ...]
    cosine: float | None
    dropped: Dropped

    @property
    def median_seconds(self) -> float:
        """Of the timed steps."""
        return median(self.seconds)

    def slowdown(self, baseline: "Footprint") -> float:
        """Median ratio of a step's time to the baseline's in the same turn."""
        return median(mine / theirs for mine, theirs in zip(self.seconds, baseline.seconds, strict=True))

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


def measure(config: Config, device: torch.device, steps: int, *, every_round: bool = False) -> list[Footprint]:
    """Every compared setting; ``steps`` timed steps of each, one of every setting in turn.

    A step is that of an ordinary round, with ``every_round`` of the round that takes most, as budgets mean it: where a
    method ever reads the gradient of all parameters, that is there.

    Raises:
        UserError: model or density are not to be had.
    """
    shape = shape_of(config.data)
    batch, settings = random_batch(config, shape, device), compared_settings(config)
    return measure_settings(config, shape, batch, settings, steps, every_round=every_round)


def measure_settings(
    config: Config,
    shape: Shape,
    batch: Batch,
    settings: Sequence[Setting],
    steps: int,
    *,
    every_round: bool = False,
) -> list[Footprint]:
    """These settings on one batch. Arguments and errors: see :func:`measure`."""
    keeps = [every_round and not method_named(setting.method).plain_steps for setting in settings]
    candidates = [
        training_step(config, setting, shape, batch, keeps_gradient=kept)
        for setting, kept in zip(settings, keeps, strict=True)
    ]
    cosines = _faithfulness(config, shape, batch, settings, candidates)
    dropped = [step.dropped() for step in candidates]
    memory = [step.measure() for step in candidates]
    seconds = list(zip(*([step.seconds() for step in candidates] for _ in range(steps)), strict=True))
    models = [modelled_step(config, setting, shape) for setting in settings]
    rows = zip(settings, memory, models, seconds, cosines, dropped, strict=True)
    return [Footprint(setting, measured, *model, *rest) for setting, measured, model, *rest in rows]


def _faithfulness(
    config: Config, shape: Shape, batch: Batch, settings: Sequence[Setting], steps: Sequence[TrainingStep]
) -> list[float | None]:
    """The cosine of each setting's gradient; see :class:`Footprint`. All start from the same weights."""
    plain: dict[tuple[str, float, float], torch.Tensor] = {}
    found = []
    for setting, step in zip(settings, steps, strict=True):
        key = setting.norm, setting.density, setting.alpha
        if key not in plain:
            off = setting.sap.model_copy(update={"enabled": False})
            reference = replace(setting, sap=off, recompute="none", plan=None)
            plain[key] = training_step(config, reference, shape, batch).loss_gradient()
        mine, theirs, count = step.loss_gradient(), plain[key], step.space.n_prunable
        same = torch.equal(mine, theirs)
        found.append(None if same else torch.cosine_similarity(mine[:count], theirs[:count], dim=0).item())
    return found


def modelled(config: Config, shape: Shape) -> list[tuple[Setting, DeviceMemory]]:
    """A step of each compared setting on a simulated device, nothing measured; the own one alone if it has no density.

    Raises:
        UserError: model or density are not to be had.
    """
    settings = compared_settings(config) if hasattr(config.method, "density") else [own_setting(config)]
    return [(setting, modelled_step(config, setting, shape)[1]) for setting in settings]


def as_json(config: Config, footprint: Footprint, baseline: Footprint) -> dict[str, Any]:
    """A footprint for programs; bytes and seconds, and as multiples of those of ``baseline``."""
    setting, measured, device, dense = footprint.setting, footprint.measured, footprint.device, baseline.measured
    return {
        "method": setting.method,
        "model": config.model.name,
        "norm": setting.norm,
        "batch_size": config.federation.batch_size,
        "density": setting.density,
        "prune_ratio": setting.prune_ratio,
        "packed": bool(setting.sap.enabled),
        "recompute": setting.recompute,
        "gradient": "exact" if footprint.cosine is None else footprint.cosine,
        "dropped_mass": footprint.dropped.mass,
        "dropped_nonzeros": footprint.dropped.nonzeros,
        "activation_bytes": measured.activation_bytes,
        "state_bytes": measured.state_bytes,
        "peak_bytes": measured.peak_bytes,
        "modelled_bytes": device.total,
        "modelled": asdict(device),
        "step_seconds": footprint.median_seconds,
        "held_over_baseline": measured.activation_bytes / dense.activation_bytes,
        "peak_over_baseline": measured.peak_bytes / dense.peak_bytes,
        "step_over_baseline": footprint.slowdown(baseline),
        "modules": footprint.modules(),
    }
