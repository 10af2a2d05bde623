"""What one training step really holds in memory.

Two measurements: the bytes that autograd keeps for the backward pass, each storage counted once and parameters left
out; and the allocator's peak over the step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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
        activation_bytes: held for the backward pass when the forward pass ends.
        peak_bytes: the allocator's peak during the step, above what was allocated before it.
        modules: who holds the activation bytes, in the order of the forward pass; what is kept outside of any module
            stands under the empty name.
    """

    activation_bytes: int
    peak_bytes: int
    modules: list[ModuleBytes]


def measure_step(model: nn.Module, step: Callable[[], Tensor]) -> StepMemory:
    """Runs one training step twice: once for the saved tensors, once for the allocator.

    Args:
        model: its parameters and buffers do not count.
        step: the forward pass, returning the loss; called twice, each time followed by the backward pass.
    """
    held = _SavedTensors(model)
    with held.watching():
        loss = step()
    loss.backward()
    return StepMemory(held.total, _peak(step, loss.device), held.by_module())


class _SavedTensors:
    """Counts each storage once, for the module in whose forward pass it was saved first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        # Masks are views of the parameter space's vector; layers hold them as plain attributes.
        masks = (getattr(module, "mask", None) for module in model.modules())
        self.seen |= {mask.untyped_storage().data_ptr() for mask in masks if isinstance(mask, Tensor)}
        self.bytes: dict[str, int] = {}
        self.kinds = {name: type(module).__name__ for name, module in model.named_modules()}
        self._stack = [""]
        self._alive: list[Tensor] = []

    @property
    def total(self) -> int:
        """Bytes over all modules."""
        return sum(self.bytes.values())

    def by_module(self) -> list[ModuleBytes]:
        """The modules that keep anything."""
        return [ModuleBytes(name, self.kinds[name], size) for name, size in self.bytes.items()]

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
            self._alive.clear()

    def _follow(self, name: str, module: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        def enter(*_: object) -> None:
            self._stack.append(name)

        def leave(*_: object) -> None:
            self._stack.pop()

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self._alive.append(tensor.detach())  # a freed address could be given to another tensor
            name = self._stack[-1]
            self.bytes[name] = self.bytes.get(name, 0) + storage.nbytes()
        return tensor


def _peak(step: Callable[[], Tensor], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step().backward()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step().backward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak
