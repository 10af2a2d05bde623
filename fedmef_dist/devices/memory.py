"""What one training step really holds in memory.

Two measurements that do not know of each other: the bytes that autograd keeps for the backward pass, each storage
counted once and parameters left out; and what the allocator has given out, at its peak and at the end of the forward
pass. Memory that is not torch's (NumPy's, for one) is seen by neither the profiler nor the CUDA allocator; where a
layer keeps such memory, or keeps a tensor past ``save_for_backward``, the two disagree.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

_FORWARD = "fedmef_dist: forward pass"


@dataclass(frozen=True)
class ModuleBytes:
    """Bytes that one module keeps for the backward pass."""

    name: str
    kind: str
    bytes: int


@dataclass(frozen=True)
class StepMemory:
    """Memory of one training step.

    Attributes:
        activation_bytes: held for the backward pass when the forward pass ends, as autograd's saved tensors tell.
        held_bytes: of what the allocator gave out during the forward pass, the part that is still out at its end. The
            batch is not in it, the loss is; otherwise it equals ``activation_bytes``.
        state_bytes: parameters, gradients, masks, the optimiser's state: what lives from step to step.
        peak_bytes: the state and the most that the allocator had given out beside it at any time of the step.
        modules: who holds the activation bytes, in the order of the forward pass; what is kept outside of any module
            stands under the empty name.
        recomputed: who keeps what in the parts that the backward pass computes again, while it does: one part after
            another, none of it among the activation bytes.
    """

    activation_bytes: int
    held_bytes: int
    state_bytes: int
    peak_bytes: int
    modules: list[ModuleBytes]
    recomputed: list[ModuleBytes] = field(default_factory=list)


def first_input(inputs: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """What a module was called with, for a hook: its first argument, also where the caller names it."""
    return inputs[0] if inputs else next(iter(options.values()))


def measure_step(
    model: nn.Module,
    forward: Callable[[], Tensor],
    update: Callable[[], None] = lambda: None,
    state: Callable[[], Iterable[Tensor]] = tuple,
) -> StepMemory:
    """Runs one training step twice: once for the saved tensors, then, with all buffers there, for the allocator.

    Args:
        model: its parameters, their gradients, its buffers and the tensors that its modules hold as attributes are
            state and no activations.
        forward: the forward pass, returning the loss; each call is followed by the backward pass.
        update: what follows the backward pass, the optimiser's step.
        state: what else lives from step to step; asked after the first one.
    """
    saved = _SavedTensors(model, state())
    with saved.watching():
        loss = forward()
    modules = saved.take()
    with saved.watching():
        loss.backward()
    recomputed = saved.take()
    update()
    device = loss.device
    del loss, saved
    allocated = _cuda_step(forward, update, device) if device.type == "cuda" else _cpu_step(forward, update)
    gradients = (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    resident = _storages(*model.parameters(), *model.buffers(), *_attributes(model), *gradients, *state())
    state_bytes = sum(resident.values())
    activation_bytes = sum(module.bytes for module in modules)
    return StepMemory(activation_bytes, allocated.held, state_bytes, state_bytes + allocated.peak, modules, recomputed)


def _storages(*tensors: Tensor) -> dict[int, int]:
    """Bytes of each storage by its address."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _attributes(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules keep as plain attributes: masks, and what is derived from them."""
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


class _SavedTensors:
    """Counts each storage once, for the module in whose forward pass it was saved first."""

    def __init__(self, model: nn.Module, state: Iterable[Tensor]) -> None:
        self.model = model
        self.seen = set(_storages(*model.parameters(), *model.buffers(), *_attributes(model), *state))
        self.bytes: dict[str, int] = {}
        self.kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self._stack = [""]
        self._alive: list[Tensor] = []

    def take(self) -> list[ModuleBytes]:
        """The modules that have kept anything since it was asked last."""
        found = [ModuleBytes(name, self.kinds[name], size) for name, size in self.bytes.items()]
        self.bytes.clear()
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Counts what is saved inside."""
        handles = [handle for name, module in self.model.named_modules() for handle in self._follow(name, module)]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _follow(self, name: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        def enter(*_: object) -> None:
            self._stack.append(name)

        def leave(*_: object) -> None:
            self._stack.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self._alive.append(tensor.detach())  # a freed address could be given to another tensor
            name = self._stack[-1]
            self.bytes[name] = self.bytes.get(name, 0) + storage.nbytes()
        return tensor


@dataclass(frozen=True)
class _Allocated:
    """Bytes given out since a step began: still out when its forward pass ends, and at most."""

    held: int
    peak: int


def _cuda_step(forward: Callable[[], Tensor], update: Callable[[], None], device: torch.device) -> _Allocated:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    loss = forward()
    held = torch.cuda.memory_allocated(device) - before
    loss.backward()
    update()
    torch.cuda.synchronize(device)
    return _Allocated(held, torch.cuda.max_memory_allocated(device) - before)


def _cpu_step(forward: Callable[[], Tensor], update: Callable[[], None]) -> _Allocated:
    # Below this level the profiler announces its start and end on stderr. It reads the variable when it first starts.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function(_FORWARD):
            loss = forward()
        loss.backward()
        update()
    assert profiler.profiler is not None
    return _replay(profiler.profiler.kineto_results.experimental_event_tree())


def _replay(tree: list[Any]) -> _Allocated:
    """Adds up what was given out and taken back, in the order of time.

    An address that was given out before the profiler started is passed over. Summing all events would go wrong there:
    the profiler remembers addresses of earlier sessions, and takes their sizes for those of newer tensors.
    """
    nodes = list(flattened(tree))
    forward_end = next(node.end_time_ns for node in nodes if node.name == _FORWARD)
    events = [(node.start_time_ns, node.extra_fields) for node in nodes if node.name == "[memory]"]
    out: dict[int, int] = {}
    current = peak = held = 0
    for time, event in sorted(events, key=lambda item: item[0]):
        if event.alloc_size > 0:
            out[event.ptr] = event.alloc_size
        current += event.alloc_size if event.alloc_size > 0 else -out.pop(event.ptr, 0)
        peak = max(peak, current)
        if time <= forward_end:
            held = current
    return _Allocated(held, peak)


def flattened(nodes: Iterable[Any]) -> Iterator[Any]:
    """A profiler's nodes and all below them."""
    for node in nodes:
        yield node
        yield from flattened(node.children)
