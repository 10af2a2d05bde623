"""Floating-point operations of each layer, forward and backward, as torch's own counter has them.

A multiply-add is two operations. Counted are convolutions and products of matrices; what works element by element
(activations, normalisation layers, biases, the optimiser) is not.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedmef_dist.devices.memory import first_input
from fedmef_dist.layers.attention import SelfAttention, recomputed_modules
from fedmef_dist.layers.recompute import recomputed_parts

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class LayerFlops:
    """One layer with all its weights active, for one sample; or several such layers together.

    Attributes:
        forward: FLOPs of the forward pass.
        input_gradient: FLOPs of the gradient of its input; 0 where the input is the sample itself.
        weight_gradient: FLOPs of the gradient of its weights; 0 for attention, which multiplies tokens with tokens.
        recomputation: FLOPs of what the backward pass computes a second time, in lean attention and recomputed blocks.
        input_elements: numbers in its input.
    """

    forward: float = 0
    input_gradient: float = 0
    weight_gradient: float = 0
    recomputation: float = 0
    input_elements: int = 0

    def __add__(self, other: "LayerFlops") -> "LayerFlops":
        return LayerFlops(
            self.forward + other.forward,
            self.input_gradient + other.input_gradient,
            self.weight_gradient + other.weight_gradient,
            self.recomputation + other.recomputation,
            self.input_elements + other.input_elements,
        )

    def with_share(self, share: float) -> "LayerFlops":
        """The layer with only this share of its weights active."""
        return LayerFlops(
            self.forward * share,
            self.input_gradient * share,
            self.weight_gradient * share,
            self.recomputation * share,
            self.input_elements,
        )

    @property
    def backward(self) -> float:
        """FLOPs of both gradients."""
        return self.input_gradient + self.weight_gradient


class _Call(NamedTuple):
    """One call of a module; ``differentiable``: a gradient flows on to what its input was made from."""

    name: str
    shape: torch.Size
    differentiable: bool


def layer_flops(model: nn.Module, example: Tensor) -> dict[str, LayerFlops]:
    """FLOPs of each module that multiplies for itself, and the input of each that may keep it pruned.

    The network runs forward once, in evaluation mode and without gradients. Each call of a convolution or linear layer
    is then counted on the meta device: the plain operation of these shapes, whatever the layer does around it. All
    other products, those of attention, belong to the innermost module that makes them; two operands want a gradient,
    so their backward pass costs twice their forward pass. Attention counts as if it were not fused: all scores, also
    those that a causal mask hides, and none of them a second time in the backward pass. Lean attention does compute
    ``in_proj`` and the attention again, which is counted as recomputation, as are recomputed blocks.

    A layer's input has no gradient where it shares memory with the example or with a buffer.

    Args:
        model: any network, on any device.
        example: a batch of one sample.
    """
    calls, products = _record(model, example.to(next(model.parameters()).device))
    found: dict[str, LayerFlops] = defaultdict(LayerFlops)
    for call in calls:
        found[call.name] += _count(model.get_submodule(call.name), call)
    for name, flops in products.items():
        if flops and not isinstance(model.get_submodule(name), _WEIGHTED):
            found[name] += LayerFlops(flops, 2 * flops)
    return {
        name: flops + LayerFlops(recomputation=_repeats(model, name) * flops.forward) for name, flops in found.items()
    }


def _repeats(model: nn.Module, name: str) -> int:
    """How often the backward pass computes a module again; one in lean attention inside of a block, twice."""
    module = model.get_submodule(name)
    in_attention = module in recomputed_modules(model) or (isinstance(module, SelfAttention) and module.lean)
    return in_attention + sum(module in inside for inside in recomputed_parts(model).values())


def _record(model: nn.Module, example: Tensor) -> tuple[list[_Call], dict[str, int]]:
    """The calls of layers with weights or pruning, and the FLOPs that each module does outside of its children."""
    constants = {tensor.untyped_storage()._cdata for tensor in (example, *model.buffers())}
    calls: list[_Call] = []
    training = model.training
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        split = _Split(stack.enter_context(FlopCounterMode(display=False)))

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
                x = first_input(inputs, options)
                calls.append(_Call(name, x.shape, x.untyped_storage()._cdata not in constants))

            return hook

        for name, module in model.named_modules():
            if isinstance(module, _WEIGHTED) or hasattr(module, "pruning"):
                stack.callback(module.register_forward_pre_hook(note(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_pre_hook(split.enter(name)).remove)
            stack.callback(module.register_forward_hook(split.leave).remove)
        model.eval()(example)
    return calls, split.flops


class _Split:
    """Shares out what a counter counts to the innermost modules that run."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.flops: dict[str, int] = defaultdict(int)
        self._counter, self._counted = counter, 0
        self._running: list[str] = [""]

    def enter(self, name: str) -> Callable[..., None]:
        """A forward pre-hook for the module called ``name``."""

        def hook(*_: Any) -> None:
            self._lap()
            self._running.append(name)

        return hook

    def leave(self, *_: Any) -> None:
        """A forward hook."""
        self._lap()
        self._running.pop()

    def _lap(self) -> None:
        total = self._counter.get_total_flops()
        self.flops[self._running[-1]] += total - self._counted
        self._counted = total


def _count(module: Any, call: _Call) -> LayerFlops:
    if not isinstance(module, _WEIGHTED):
        return LayerFlops(input_elements=call.shape.numel())
    x = torch.empty(call.shape, device="meta", requires_grad=True)
    weight = torch.empty(module.weight.shape, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = F.linear(x, weight) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, None)
    return LayerFlops(
        forward=counter.get_total_flops(),
        input_gradient=_backward(output, x) if call.differentiable else 0,
        # The counter takes the gradient of a grouped convolution's weight for that of a full one.
        weight_gradient=_backward(output, weight) // getattr(module, "groups", 1),
        input_elements=call.shape.numel(),
    )


def _backward(output: Tensor, source: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(output, source, torch.empty_like(output), retain_graph=True)
    return counter.get_total_flops()
