"""Plans the memory of a configuration's training step: traces it, and searches for what fits a budget.

Everything is planned on the CPU, on a batch of random samples that the seed decides, with the weights and a mask of the
run's start: a plan depends on the configuration alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config
from fedmef_dist.data.shapes import Shape
from fedmef_dist.devices.layer_flops import layer_flops
from fedmef_dist.devices.memory import StepMemory, first_input
from fedmef_dist.devices.planner import Candidate, PackedLayer, Part, Planner, Trace, TracedForm
from fedmef_dist.devices.settings import parse_size
from fedmef_dist.devices.training_step import TrainingStep
from fedmef_dist.layers.recompute import RecomputedStages, recomputed_blocks
from fedmef_dist.methods.registry import method_of
from fedmef_dist.models.plan import MemoryPlan, apply_plan, plannable_layers
from fedmef_dist.simulation.footprint import build_network, own_setting, planned, random_batch, training_step

_SLACK = 1.01  # predictions have been off by less than this


@dataclass(frozen=True)
class Planned:
    """What the planner chose for a budget.

    Attributes:
        plan: to apply to the model.
        candidate: its parts' forms, and the peak that was predicted.
        measured: the peak of a step that follows it, bytes.
        planner: for the front of all plans.
    """

    plan: MemoryPlan
    candidate: Candidate
    measured: int
    planner: Planner


def plan_for_budget(config: Config, shape: Shape) -> MemoryPlan | None:
    """The plan for ``device.budget``; None where the configuration sets none. Raises UserError."""
    if config.device.budget is None:
        return None
    return plan_memory(config, shape, parse_size(config.device.budget, "device.budget")).plan


def plan_memory(config: Config, shape: Shape, budget: int) -> Planned:
    """The plan of least cost whose measured peak is within ``budget`` bytes.

    Exact plans come first; then those that prune least; among them those that compute least a second time. Inputs are
    pruned only where the configuration prunes activations (``sap.enabled``, and ``sap.prune_ratio`` above 0).

    Raises:
        UserError: no plan fits; the message names the smallest budget that one does.
    """
    return fit(*open_planner(config, shape), budget)


def fit(step: TrainingStep, planner: Planner, budget: int) -> Planned:
    """The plan of :func:`plan_memory` from what :func:`open_planner` gave."""
    least: int | None = None
    for candidate in _within(planner, budget):
        measured = measure_plan(step, planner.plan(candidate)).peak_bytes
        if measured <= budget:
            return Planned(planner.plan(candidate), candidate, measured, planner)
        least = min(measured, least or measured)
    if least is None:
        smallest = list(planner.sequence())[-1]
        least = measure_plan(step, planner.plan(smallest)).peak_bytes
    raise UserError(
        f"no plan fits {budget / 1e6:g} MB: the smallest takes {least / 1e6:.3f} MB",
        where="device.budget",
        mend=f"give {least // 1000 / 1000 + 0.001:.3f}MB or more, a smaller batch, or a smaller model",
    )


def _within(planner: Planner, budget: int) -> Iterator[Candidate]:
    """Plans worth measuring: the cheapest that is predicted to fit, then those behind it in the planner's sequence.

    Last come plans whose prediction is a little over the budget: it may be too high.
    """
    cheapest = planner.cheapest(budget)
    if cheapest is not None:
        yield cheapest
    sequence = list(planner.sequence())
    yield from (candidate for candidate in sequence if candidate.peak <= budget)
    yield from (candidate for candidate in sequence if budget < candidate.peak <= _SLACK * budget)


def measure_plan(step: TrainingStep, plan: MemoryPlan) -> StepMemory:
    """The memory of a step that follows ``plan``."""
    apply_plan(step.model, plan)
    return step.measure()


def open_planner(config: Config, shape: Shape) -> tuple[TrainingStep, Planner]:
    """A step of the configuration's model in the form to which plans apply, and a planner that has traced it."""
    batch = random_batch(config, shape, torch.device("cpu"))
    setting = planned(own_setting(config))
    # A budget holds in every round.
    step = training_step(config, setting, shape, batch, keeps_gradient=not method_of(config.method).plain_steps)
    step.hold_still()  # else zeros would come and go with the weights
    model = step.model
    names = list(plannable_layers(build_network(config, replace(setting, recompute="none"), shape)))
    blocks = recomputed_blocks(model)
    inside = [name for name in names if any(name.startswith(f"{block}.".lstrip(".")) for block in blocks)]
    packed = _look_at_inputs(step, names)
    forms: dict[TracedForm, MemoryPlan] = {
        "keep": MemoryPlan(dict.fromkeys(names), frozenset()),
        "pack": MemoryPlan(dict.fromkeys(names, 0.0), frozenset()),
        "recompute": MemoryPlan(dict.fromkeys(names, 0.0) | dict.fromkeys(inside), frozenset(blocks)),
    }
    traces, state = {}, 0
    for form, plan in forms.items():
        memory = measure_plan(step, plan)
        state = memory.state_bytes
        held = {module.name: module.bytes for module in memory.modules}
        traces[form] = Trace(step.trace(_followed(model)), held)
    parts = _parts(model, traces["pack"], packed, batch[0][:1])
    sap = config.resolved_sap
    return step, Planner(parts, traces, state, prunes=bool(sap.enabled and sap.prune_ratio))


def _followed(model: nn.Module) -> list[str]:
    """All modules but the network itself and those inside of a block that is computed again."""
    hidden: set[nn.Module] = set()
    for block in recomputed_blocks(model).values():
        if block.recomputes:
            inside = set(block.modules()) - {block}
            first = set()
            if isinstance(block, RecomputedStages):
                children = list(block.children())
                first = {children[start] for start, _ in block.stages}
            hidden |= inside - first
    return [name for name, module in model.named_modules() if name and module not in hidden]


def _parts(model: nn.Module, trace: Trace, packed: dict[str, PackedLayer], example: Tensor) -> list[Part]:
    """Blocks, and modules outside of them, in the order in which a forward pass comes to them."""
    flops = layer_flops(model, example)
    block_of = {
        name: block
        for block in recomputed_blocks(model)
        for name, _ in model.get_submodule(block).named_modules(prefix=block)
    }
    parts: dict[str, Part] = {}
    for segment in trace.segments:
        name = segment.owner
        if name is None:
            continue
        owner = block_of.get(name, name)
        part = parts.setdefault(owner, Part(owner, is_block=owner in block_of))
        if name in part.members:
            continue
        part.members.append(name)
        if name in packed:
            part.layers[name] = packed[name]
        part.operations += flops[name].forward if name in flops and part.is_block else 0
    return list(parts.values())


def _look_at_inputs(step: TrainingStep, names: list[str]) -> dict[str, PackedLayer]:
    """What each of these layers reads; a tensor that several read counts for the first."""
    seen: list[tuple[Tensor, int]] = []
    found: dict[str, PackedLayer] = {}

    def look(name: str, x: Tensor) -> None:
        shared = any(x is other and x._version == version for other, version in seen)
        seen.append((x, x._version))
        half = torch.is_autocast_enabled("cpu") and x.dtype == torch.float32
        size = 2 if half else x.element_size()
        found[name] = PackedLayer(0, 0, size) if shared else PackedLayer(x.numel(), int(x.count_nonzero()), size)

    with _before_each(step.model, names, look):
        step.dropped()
    return found


@contextmanager
def _before_each(model: nn.Module, names: list[str], look: Any) -> Iterator[None]:
    def hook(name: str) -> Any:
        return lambda module, inputs, options: look(name, first_input(inputs, options))

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
