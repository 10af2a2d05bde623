"""When in a training step the memory is taken: the allocator's peak while each module runs, forward and backward."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from fedmef_dist.devices.memory import flattened

_MARK = "fedmef_dist: module "


@dataclass(frozen=True)
class Segment:
    """A stretch of a step: from where a module's forward or backward pass begins to where the next one's does.

    Attributes:
        owner: name of the module; None before the first, and in the optimiser's step.
        peak: the most bytes that were out in it, counted from the step's beginning.
    """

    owner: str | None
    peak: int


def trace_step(
    model: nn.Module, names: Sequence[str], forward: Callable[[], Tensor], update: Callable[[], None]
) -> list[Segment]:
    """Runs one training step on the CPU. A step before it has to have made whatever lives from step to step.

    Args:
        model: what runs.
        names: the modules to follow; none inside of a part that is computed again.
        forward: the forward pass, returning the loss.
        update: what follows the backward pass.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with _marking(model, names):
            loss = forward()
        loss.backward()
        _mark("")
        update()
    assert profiler.profiler is not None
    return _segments(profiler.profiler.kineto_results.experimental_event_tree())


def _mark(name: str) -> None:
    with record_function(_MARK + name):
        pass


@contextmanager
def _marking(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, a mark stands before each forward pass of these modules, and later before each backward pass.

    Where a module hands on what an inner one put out, the backward pass begins with the inner one.
    """
    last: list[Any] = [None]

    def follow(name: str) -> list[Any]:
        def enter(*_: object) -> None:
            _mark(name)

        def leave(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor) and first.grad_fn is not None and first.grad_fn is not last[0]:
                last[0] = first.grad_fn
                first.register_hook(lambda gradient: _mark(name))

        module = model.get_submodule(name)
        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    handles = [handle for name in names for handle in follow(name)]
    try:
        yield
    finally:
        last.clear()
        for handle in handles:
            handle.remove()


def _segments(tree: list[Any]) -> list[Segment]:
    """As ``devices/memory.py`` replays it: an address that was given out before the profiler started is passed over."""
    nodes = [node for node in flattened(tree) if node.name == "[memory]" or node.name.startswith(_MARK)]
    out: dict[int, int] = {}
    segments, owner, current, peak = [], None, 0, 0
    for node in sorted(nodes, key=lambda node: node.start_time_ns):
        if node.name != "[memory]":
            segments.append(Segment(owner, peak))
            owner, peak = node.name.removeprefix(_MARK) or None, current
            continue
        event = node.extra_fields
        if event.alloc_size > 0:
            out[event.ptr] = event.alloc_size
        current += event.alloc_size if event.alloc_size > 0 else -out.pop(event.ptr, 0)
        peak = max(peak, current)
    return [*segments, Segment(owner, peak)]
