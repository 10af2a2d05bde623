"""Memory that one training step would take on a simulated device, modelled from layers, shapes and the mask.

Nothing is measured here: the network runs once on torch's meta device, where tensors have a shape and no content.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.devices.memory import ModuleBytes, first_input
from fedmef_dist.layers import lean, random
from fedmef_dist.layers.activation_pruning import DENSE, Pruning
from fedmef_dist.layers.attention import SelfAttention, recomputed_modules
from fedmef_dist.layers.layernorm import LeanLayerNorm
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.layers.recompute import recomputed_parts
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.layer_encoding import encoded_bytes
from fedmef_dist.wire.ledger import VALUE_BYTES

_STATISTIC_BYTES = 4
_INDEX_BYTES = 8
_GENERATOR_BYTES = torch.Generator().get_state().nbytes


class _Call(NamedTuple):
    """One call of a module."""

    module: Any
    x: Tensor
    output: Tensor


class _Packed(NamedTuple):
    """What is kept of a tensor, which neighbours that prune it alike share."""

    x: Tensor
    pruning: Pruning
    bytes: int


# Tensors, whole or packed, which several modules may keep and which then count once, and plain numbers of bytes.
_Item = Tensor | _Packed | int
_Kept = list[_Item]
_Rule = Callable[[_Call], _Kept]


def _weighted(call: _Call) -> _Kept:
    pruning = getattr(call.module, "pruning", DENSE)
    if pruning.ratio:
        return [_Packed(call.x, pruning, _packed_bytes(call.x, pruning))]
    # Autocast gives a stock layer a copy of its weight in the type of its input, and autograd keeps it.
    weight = call.module.weight
    copied = weight.nbytes if weight.dtype != torch.float32 and pruning.is_dense and not _is_normalised(call) else 0
    value = _value_bytes(call.x, pruning)
    return [call.x if value == call.x.element_size() else value * call.x.numel(), copied]


def _is_normalised(call: _Call) -> bool:
    return isinstance(call.module, NSConv2d | NSLinear)


def _packed_bytes(x: Tensor, pruning: Pruning) -> int:
    rows = x.shape[0] if pruning.per_sample else 1
    values = rows * round((1 - pruning.ratio) * x.numel() / rows)
    return _bits(x) + values * _value_bytes(x, pruning)


def _value_bytes(x: Tensor, pruning: Pruning) -> int:
    return min(x.element_size(), pruning.storage.itemsize if pruning.storage is not None else x.element_size())


def _bits(x: Tensor) -> int:
    return ceil(x.numel() / 8)


def _batch_norm(call: _Call) -> _Kept:
    return [call.x, 2 * _STATISTIC_BYTES * call.module.num_features]


def _group_norm(call: _Call) -> _Kept:
    return [call.x, 2 * _STATISTIC_BYTES * call.x.shape[0] * call.module.num_groups]


def _layer_norm(call: _Call) -> _Kept:
    rows = call.x.numel() // torch.Size(call.module.normalized_shape).numel()
    return [call.x, 2 * _STATISTIC_BYTES * rows]


def _lean_layer_norm(call: _Call) -> _Kept:
    if call.module.pruning.is_exact:
        return _layer_norm(call)
    rows = call.x.numel() // torch.Size(call.module.normalized_shape).numel()
    x, pruning = call.x, call.module.pruning
    kept = _packed_bytes(x, pruning) if pruning.ratio else _value_bytes(x, pruning) * x.numel()
    return [kept, _STATISTIC_BYTES * rows]


def _by_input(call: _Call) -> _Kept:
    # An in-place activation whose derivative needs the input keeps a copy of it.
    return [call.x.nbytes if getattr(call.module, "inplace", False) else call.x]


def _by_output(call: _Call) -> _Kept:
    return [call.output]


def _max_pool(call: _Call) -> _Kept:
    return [call.x, _INDEX_BYTES * call.output.numel()]


def _adaptive_pool(call: _Call) -> _Kept:
    # Down to one pixel it is a mean, which needs the shape only.
    return [] if call.output.shape[-2:] == (1, 1) else [call.x]


def _dropout(call: _Call) -> _Kept:
    return [_bits(call.x)] if call.module.p else []


def _channel_dropout(call: _Call) -> _Kept:
    return [call.x.element_size() * call.x.shape[:2].numel()] if call.module.p else []


def _stochastic_depth(call: _Call) -> _Kept:
    return [call.x.element_size() * (len(call.x) if call.module.mode == "row" else 1)] if call.module.p else []


def _attention(call: _Call) -> _Kept:
    if call.module.lean:
        return [call.x]
    # Queries, keys, values, the logarithm of each softmax's denominator, and what it puts out. That is the projection's
    # input, which the projection itself keeps where it keeps it whole.
    batch, tokens, _ = call.x.shape
    tensors = 4 if getattr(call.module.out_proj, "pruning", DENSE).ratio else 3
    return [tensors * call.x.nbytes, _STATISTIC_BYTES * batch * tokens * call.module.heads]


def _squeeze_excitation(call: _Call) -> _Kept:
    # It multiplies its input by one factor a channel, which a sigmoid has kept already.
    sigmoid = isinstance(call.module.scale_activation, nn.Sigmoid)
    return [call.x, 0 if sigmoid else call.x.element_size() * call.x.shape[0] * call.x.shape[1]]


_RULES: dict[type[nn.Module], _Rule] = {
    nn.Conv2d: _weighted,
    nn.Linear: _weighted,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    LeanLayerNorm: _lean_layer_norm,
    nn.ReLU: _by_output,
    nn.LeakyReLU: lambda call: [call.output if call.module.inplace else call.x],
    nn.Sigmoid: _by_output,
    nn.Tanh: _by_output,
    nn.ReLU6: _by_input,
    nn.Hardsigmoid: _by_input,
    nn.Hardswish: _by_input,
    nn.SiLU: _by_input,
    nn.GELU: _by_input,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: lambda call: [call.x],
    nn.AdaptiveAvgPool2d: _adaptive_pool,
    nn.Embedding: lambda call: [call.x],
    lean.LeanReLU: lambda call: [_bits(call.x)],
    lean.LeanLeakyReLU: lambda call: [_bits(call.x)],
    lean.LeanSiLU: lambda call: [call.x.numel()],
    lean.LeanHardswish: lambda call: [call.x.numel()],
    lean.LeanGELU: lambda call: [call.x.numel()],
    lean.LeanMaxPool2d: lambda call: [call.output.numel()],
    SelfAttention: _attention,
    random.Dropout: _dropout,
    random.ChannelDropout: _channel_dropout,
    random.StochasticDepth: _stochastic_depth,
}
# Known by name: the class is torchvision's, which is not imported for the networks of our own.
_NAMED_RULES: dict[str, _Rule] = {"SqueezeExcitation": _squeeze_excitation}


def _rule_of(module: nn.Module) -> _Rule | None:
    known = (_RULES.get(kind) or _NAMED_RULES.get(kind.__name__) for kind in type(module).__mro__)
    return next((rule for rule in known if rule is not None), None)


@dataclass(frozen=True)
class Activations:
    """What one step's forward pass keeps, and the largest dense tensors beside it.

    Attributes:
        modules: what each module keeps, in the order of the forward pass; the loss under the empty name.
        transient: the most that one module's backward pass needs at once: the gradients of its output and its input,
            and its input as restored from what was kept of it.
    """

    modules: list[ModuleBytes]
    transient: int

    @property
    def bytes(self) -> int:
        """Bytes over all modules."""
        return sum(module.bytes for module in self.modules)


def model_activations(model: nn.Module, images: Tensor) -> Activations:
    """Activations of one training step with cross-entropy as its loss.

    Whatever a model computes outside of modules that are known here counts as keeping nothing. Packed activations count
    with the most that they can take: zeros are not packed, but how many there are no shape can tell. So what is packed
    without loss counts as dense. What a recomputed block keeps inside counts as transient.

    Args:
        model: on the meta device, in the type of its arithmetic: bfloat16 where autocast makes it so.
        images: a batch on the meta device, in that type.
    """
    parts = recomputed_parts(model)
    count = _Counter({inner: name for name, inside in parts.items() for inner in inside})
    recomputed = recomputed_modules(model)
    handles = [
        module.register_forward_hook(count.of(name, rule), with_kwargs=True)
        for name, module in model.named_modules()
        if (rule := _rule_of(module)) is not None and module not in recomputed
    ]
    handles += [
        model.get_submodule(name).register_forward_pre_hook(count.part(name), with_kwargs=True) for name in parts
    ]
    with torch.no_grad():
        logits = model.train()(images)
    for handle in handles:
        handle.remove()
    # Cross-entropy keeps float32 logarithms of the probabilities, the labels and the sum of their weights.
    loss = _STATISTIC_BYTES * (logits.numel() + 1) + _INDEX_BYTES * (logits.numel() // logits.shape[-1])
    modules = [ModuleBytes(name, kind, size) for (name, kind), size in count.bytes.items() if size]
    return Activations([*modules, ModuleBytes("", type(model).__name__, loss)], count.most())


def _restored_bytes(call: _Call) -> int:
    if getattr(call.module, "lean", False):  # normalised input, queries, keys, values, heads
        return 5 * call.x.nbytes
    return call.x.nbytes if getattr(call.module, "pruning", DENSE).ratio else 0


class _Counter:
    """Counts each storage once, for the module that keeps it first.

    Args:
        parts: the part of each module that is computed again.
    """

    def __init__(self, parts: dict[nn.Module, str]) -> None:
        self.bytes: dict[tuple[str, str], int] = {}
        self._transient: dict[str, int] = {}
        self._inside: dict[str, int] = {}
        self._parts = parts
        self._seen: dict[tuple[Any, ...], Any] = {}  # the tensors too, so that no address is given out twice

    def of(self, name: str, rule: _Rule) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        """A forward hook for the module called ``name``."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            # The stand-in for torch's attention gives a pair, as torch's does.
            call = _Call(module, first_input(inputs, options), output[0] if isinstance(output, tuple) else output)
            part = self._parts.get(module, "")
            kept = sum(self._size(kept, part) for kept in rule(call))
            if part:
                self._inside[part] = self._inside.get(part, 0) + kept
            else:
                self._add(name, module, kept)
            transient = call.x.nbytes + call.output.nbytes + _restored_bytes(call)
            self._transient[part] = max(self._transient.get(part, 0), transient)

        return hook

    def part(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A hook before the module that the part called ``name`` begins with, whose input is kept."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            draws = any(part == name and getattr(inner, "draws", False) for inner, part in self._parts.items())
            self._add(name, module, self._size(first_input(inputs, options), "") + _GENERATOR_BYTES * draws)

        return hook

    def most(self) -> int:
        """The most that is alive beside what is kept: one layer's tensors, and in a part also what it keeps inside."""
        return max((self._inside.get(part, 0) + size for part, size in self._transient.items()), default=0)

    def _add(self, name: str, module: nn.Module, size: int) -> None:
        key = name, type(module).__name__
        self.bytes[key] = self.bytes.get(key, 0) + size

    def _size(self, kept: _Item, part: str) -> int:
        """Bytes that nobody has counted yet, in the same part."""
        if isinstance(kept, int):
            return kept
        x, pruning, size = kept if isinstance(kept, _Packed) else (kept, None, kept.untyped_storage().nbytes())
        key = part, pruning, x.untyped_storage()._cdata, x._version if pruning else 0
        if key in self._seen:
            return 0
        self._seen[key] = x
        return size


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on a simulated device during an ordinary training step.

    Attributes:
        parameters: weights as they travel, each layer in its shortest encoding, and the running statistics.
        gradients: of the active weights and of everything that is never pruned.
        optimizer: momentum or both moments, and FedProx's origin, each as large as the active weights.
        activations: kept for the backward pass.
        transient: the largest dense tensors beside them.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    transient: int

    @property
    def total(self) -> int:
        """Bytes at the step's peak, all parts taken as alive together."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.transient


def device_memory(
    space: ParameterSpace, counts: Sequence[int], optimizer: OptimizerSettings, activations: Activations
) -> DeviceMemory:
    """The whole step with so many active weights in the layers; only the space's shapes matter."""
    tail = VALUE_BYTES * (space.total - space.n_prunable)
    encoded = sum(
        encoded_bytes(layer.size, count, layer.rows) for layer, count in zip(space.layers, counts, strict=True)
    )
    active = VALUE_BYTES * (sum(counts) + space.n_dense)
    return DeviceMemory(tail + encoded, active, optimizer.states * active, activations.bytes, activations.transient)
