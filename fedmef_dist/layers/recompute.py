"""Parts of a network that keep their input alone and are computed again in the backward pass.

Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv 1604.06174). What is kept of the input may
itself be packed. The second pass sees the same numbers, draws the same random ones, and leaves running statistics as
they are, so all gradients are those of the plain network to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.activation_pruning import DENSE, LOSSLESS, Pruning, keep, restore
from fedmef_dist.layers.batchnorm import repeating
from fedmef_dist.layers.random import RandomLayer

_Step = Callable[[Tensor], Tensor]


class _Recomputed(Function):
    """Its gradients of parameters are added up where they belong as soon as they are there, not returned."""

    clear_saved_tensors_on_access = True  # what was kept of the input goes when it is whole again

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, step: _Step, modules: Sequence[nn.Module], pruning: Pruning
    ) -> Tensor:
        saved, ctx.kept = keep(x, pruning)
        generators = _generators(modules)
        ctx.save_for_backward(*saved, *(generator.get_state() for generator in generators))
        ctx.step, ctx.generators, ctx.autocast = step, generators, _autocast_of(x)
        version = x._version
        with torch.autocast(**ctx.autocast):
            output = step(x)
        if x._version != version:
            raise _not_again(modules[0], "overwrites its input")
        if not isinstance(output, Tensor):
            raise _not_again(modules[0], "gives more than one tensor")
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.autograd._is_checkpoint_valid():
            raise RuntimeError("recomputed blocks give their gradients to backward() alone, not to autograd.grad()")
        count = len(ctx.generators)
        tensors = ctx.saved_tensors
        saved, states = tensors[: len(tensors) - count], tensors[len(tensors) - count :]
        x, gradients = restore(saved, ctx.kept).detach(), list[Tensor]()
        with torch.enable_grad(), torch.autocast(**ctx.autocast), repeating(), _drawing(ctx.generators, states):
            if ctx.needs_input_grad[0]:
                x = _Source.apply(x, _anchor(), gradients)
            # The edge alone, so that an output that no layer keeps is freed.
            edge = get_gradient_edge(ctx.step(x))
        del x, saved, tensors
        torch.autograd.backward(edge, grad)
        return (gradients[0] if gradients else None), None, None, None, None


class _Source(Function):
    """Hands out what begins the second pass, and takes its gradient, as it comes: a leaf would lay it out anew."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.gradients.append(grad)
        return None, None, None


def _not_again(block: nn.Module, why: str) -> UserError:
    return UserError(
        f"a block ({type(block).__name__}) {why} and cannot be computed again",
        where="model.recompute",
        mend="set it to none",
    )


def _anchor() -> Tensor:
    """An input that asks for a gradient, for functions whose tensors do not."""
    return torch.empty(0, requires_grad=True)


def _generators(modules: Sequence[nn.Module]) -> list[torch.Generator]:
    """Those that these modules draw from in training, each once."""
    layers = (inner for module in modules for inner in module.modules() if isinstance(inner, RandomLayer))
    return list({id(layer.generator): layer.generator for layer in layers if layer.draws}.values())


@contextmanager
def _drawing(generators: Sequence[torch.Generator], states: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the generators draw from these states on; afterwards they go on from where they were."""
    now = [generator.get_state() for generator in generators]
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    try:
        yield
    finally:
        for generator, state in zip(generators, now, strict=True):
            generator.set_state(state)


def _autocast_of(x: Tensor) -> dict[str, Any]:
    """The arguments of the autocast in force; without its cache, which would carry weights from pass to pass."""
    kind = x.device.type
    enabled = torch.is_autocast_enabled(kind)
    return {"device_type": kind, "dtype": torch.get_autocast_dtype(kind), "enabled": enabled, "cache_enabled": False}


def recompute(step: _Step, modules: Sequence[nn.Module], x: Tensor, pruning: Pruning = DENSE) -> Tensor:
    """``step(x)``, of which the input alone is kept for the backward pass.

    Args:
        step: computed twice; its parameters get their gradients from ``backward()`` alone.
        modules: those that it calls.
        x: its input.
        pruning: how the input is kept, without loss.

    Raises:
        UserError: the step overwrites its input, or gives more than one tensor.
    """
    return _Recomputed.apply(x, _anchor(), step, modules, pruning)


class RecomputedBlock(nn.Module):
    """Stands before a block's own class in the order of resolution; see :func:`recomputed_block`.

    Attributes:
        recomputes: whether it does, in training mode and with gradients; else it is the block as it was.
        block_pruning: how its input is kept.
    """

    recomputes: bool
    block_pruning: Pruning

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Tensor:
        """As the class behind it. Raises UserError where a block that recomputes takes more than one tensor."""
        forward: Callable[..., Tensor] = super().forward
        if not (self.recomputes and self.training and torch.is_grad_enabled()):
            return forward(x, *others, **options)
        if any(isinstance(other, Tensor) for other in (*others, *options.values())):
            raise _not_again(self, "takes more than one tensor")
        return recompute(lambda x: forward(x, *others, **options), [self], x, self.block_pruning)


class RecomputedStages(RecomputedBlock, nn.Sequential):
    """A plain chain of layers whose stages, each up to a pooling, are computed again one by one.

    Attributes:
        stages: the children ``[start, stop)`` of each stage; what comes behind the last one is kept.
    """

    stages: list[tuple[int, int]]

    def forward(self, x: Tensor) -> Tensor:
        """As a sequential."""
        if not (self.recomputes and self.training and torch.is_grad_enabled()):
            return nn.Sequential.forward(self, x)
        layers, done = list(self), 0
        for start, stop in self.stages:
            part = layers[start:stop]
            x, done = recompute(nn.Sequential(*part).forward, part, x, self.block_pruning), stop
        for layer in layers[done:]:
            x = layer(x)
        return x


def recomputed_block(stock: nn.Module, packs: bool) -> nn.Module:
    """The block, computed again in the backward pass; it shares all submodules.

    Args:
        stock: takes and gives one tensor.
        packs: its input is kept without its zeros where that takes less.
    """
    return _remade(stock, (RecomputedBlock, type(stock)), packs)


def recomputed_stages(stock: nn.Sequential, stages: list[tuple[int, int]], packs: bool) -> nn.Module:
    """The chain, its ``stages`` computed again in the backward pass; it shares all submodules."""
    new = _remade(stock, (RecomputedStages,), packs)
    new.stages = stages  # type: ignore[assignment]
    return new


def _remade(stock: nn.Module, bases: tuple[type, ...], packs: bool) -> nn.Module:
    kind = type(type(stock).__name__, bases, {"__module__": type(stock).__module__})
    new: nn.Module = nn.Module.__new__(kind)
    new.__dict__.update(stock.__dict__)
    new.recomputes = True  # type: ignore[assignment]
    new.block_pruning = replace(LOSSLESS) if packs else DENSE  # type: ignore[assignment]
    return new


def recomputed_blocks(model: nn.Module) -> dict[str, RecomputedBlock]:
    """The blocks that may be computed again, by name, whether they do at the moment or not."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RecomputedBlock)}


def recomputed_parts(model: nn.Module) -> dict[str, list[nn.Module]]:
    """What is computed again at the moment: the modules of each part, by the name of the module that it begins with."""
    parts: dict[str, list[nn.Module]] = {}
    for name, block in recomputed_blocks(model).items():
        if not block.recomputes:
            continue
        if isinstance(block, RecomputedStages):
            children = list(block.named_children())
            parts |= {
                f"{name}.{children[start][0]}".removeprefix("."): [child for _, child in children[start:stop]]
                for start, stop in block.stages
            }
        else:
            parts[name] = [block]
    return {name: [inner for module in modules for inner in module.modules()] for name, modules in parts.items()}


@contextmanager
def nothing_recomputed(model: nn.Module) -> Iterator[None]:
    """Inside, every block keeps what it needs."""
    with ExitStack() as stack:
        for block in recomputed_blocks(model).values():
            stack.callback(setattr, block, "recomputes", block.recomputes)
            block.recomputes = False
        yield
