"""Turns a stock network into one with the chosen normalisation and, with activation pruning, lean layers."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import gcd
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.activation_pruning import PrunedConv2d, PrunedLinear, Pruning, SapSettings, pruning_of
from fedmef_dist.layers.attention import MultiheadAttention, SelfAttention, calling_its_layers, recomputed_modules
from fedmef_dist.layers.batchnorm import BatchNorm1d, BatchNorm2d, GroupNorm
from fedmef_dist.layers.filters import GAMMA_RELU, Normaliser
from fedmef_dist.layers.layernorm import LeanLayerNorm
from fedmef_dist.layers.lean import (
    LeanAdaptiveAvgPool2d,
    LeanAvgPool2d,
    LeanGELU,
    LeanHardswish,
    LeanLeakyReLU,
    LeanMaxPool2d,
    LeanReLU,
    LeanReLU6,
    LeanSiLU,
)
from fedmef_dist.layers.nsconv import NormalisedLayer, NSConv2d, NSLinear
from fedmef_dist.layers.powered import root
from fedmef_dist.layers.random import ChannelDropout, Dropout, StochasticDepth
from fedmef_dist.models.gpt import BranchNorm

_Weighted = nn.Conv2d | nn.Linear
GROUPS = 8
_WINDOWS = ("ShiftedWindowAttention", "ShiftedWindowAttentionV2")
_LEAN: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.ReLU: lambda stock: LeanReLU(stock.inplace),
    nn.ReLU6: lambda stock: LeanReLU6(stock.inplace),
    nn.LeakyReLU: lambda stock: LeanLeakyReLU(stock.negative_slope, stock.inplace),
    nn.SiLU: lambda stock: LeanSiLU(stock.inplace),
    nn.Hardswish: lambda stock: LeanHardswish(stock.inplace),
    nn.GELU: lambda stock: LeanGELU(stock.approximate),
    nn.MaxPool2d: lambda stock: _lean_max_pool(stock),
    nn.AdaptiveAvgPool2d: lambda stock: LeanAdaptiveAvgPool2d(stock.output_size),
    nn.AvgPool2d: lambda stock: LeanAvgPool2d(
        stock.kernel_size,
        stock.stride,
        stock.padding,
        stock.ceil_mode,
        stock.count_include_pad,
        stock.divisor_override,
    ),
}
_ROUNDED = (nn.SiLU, nn.Hardswish, nn.GELU)


def weighted_layers(model: nn.Module) -> dict[str, _Weighted]:
    """The convolution and linear layers by name, in the order in which the model registers them."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Weighted)}


def prunable_weights(model: nn.Module) -> list[str]:
    """Names of the weights that a mask may prune: those of all convolution and linear layers but the output layer."""
    return [f"{name}.weight" for name in list(weighted_layers(model))[:-1]]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts ``module`` in the place of the submodule called ``name``, in the same mode."""
    parent, _, attribute = name.rpartition(".")
    owner = model.get_submodule(parent)
    module.train(owner.training)
    setattr(owner, attribute, module)


def replace_modules(model: nn.Module, change: Callable[[str, nn.Module], nn.Module]) -> None:
    """Puts ``change(name, module)`` in the place of every submodule; one that has several names stays one."""
    made: dict[nn.Module, nn.Module] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module not in made:
            made[module] = change(name, module)
        if made[module] is not module:
            replace_module(model, name, made[module])


def convert(
    model: nn.Module,
    sap: SapSettings,
    norm: str,
    *,
    gammas: Mapping[str, float] = MappingProxyType({}),
    centre: bool = True,
    alpha: float = 1.0,
) -> nn.Module:
    """Replaces layers in place; weights are carried over.

    With norm nsconv normalised convolutions stand for convolution and batch normalisation. Linear layers are normalised
    where that replaces layer normalisation, in the GPT; other transformers keep both as they are.

    Without activation pruning the layers stay torch's own, so that a dense baseline is not flattered or burdened;
    only batch normalisation, dropout and stochastic depth are replaced by layers that survive a batch of one and draw
    from a generator of the client's own, and attention by one whose linear layers a mask can find.

    Args:
        model: a network of stock torch layers; its first convolution or linear layer sees the images, or else its
            embedding the tokens; the last one is the output layer.
        sap: activation pruning, ``enabled`` settled.
        norm: nsconv (normalised weights instead of batch normalisation), batch, group (8 groups, or the largest common
            divisor with the channels), layer (one group) or none.
        gammas: of layers that get normalised weights, by name (:func:`gammas.gammas_of`); that of ReLU where absent.
        centre: nsconv subtracts every filter's mean.
        alpha: prunable weights act as this power of their parameters, at first as the stock ones do.

    Returns:
        The model.

    Raises:
        UserError: two layers share a parameter, and what takes their places would not.
    """
    shared = _shared_parameters(model)
    _expose_attention(model)
    layers = list(weighted_layers(model))
    output = layers[-1]
    first = None if any(isinstance(module, nn.Embedding) for module in model.modules()) else layers[0]
    normalisers = _normalisers(model, norm, centre, gammas)
    if sap.enabled:
        _recompute_attention(model)
        _spare_linear_outputs(model)
    recomputed = recomputed_modules(model)

    def converted(name: str, module: nn.Module) -> nn.Module:
        pruning = Pruning() if module in recomputed else _pruning(sap, name == first, name == output)
        if isinstance(module, _Weighted):
            power = 1.0 if name == output else alpha
            return _convert_weighted(module, pruning, norm, normalisers.get(name), name == output, power)
        return _convert_other(module, pruning, sap, norm)

    replace_modules(model, converted)
    _refuse_parted(model, shared)
    return model


def _shared_parameters(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [alike for alike in names.values() if len(alike) > 1]


def _refuse_parted(model: nn.Module, shared: list[list[str]]) -> None:
    """Raises UserError where names that were one parameter's are those of several now."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for names in shared:
        if len({parameters.get(name) for name in names}) > 1:
            raise UserError(
                f"{' and '.join(names)} are one parameter, which the layers for this run would make several",
                where="model.name",
                mend="register one layer under all names, or give each its own; "
                "sap.enabled=false model.norm=batch leaves the layers as they are",
            )


def refuse_left_behind(model: nn.Module, before: Sequence[nn.Module], example: Tensor) -> None:
    """Raises UserError where a forward pass still calls modules whose places others have taken.

    A model that holds its layers in a plain list too calls them from there: they are in no flat vector, and would never
    be trained.

    Args:
        model: converted.
        before: its modules before.
        example: a batch of one sample.
    """
    alive = {id(module._parameters) for module in model.modules()}  # a stand-in may share its stock module's
    called: list[nn.Module] = []
    handles = [
        module.register_forward_pre_hook(lambda module, _: called.append(module))
        for module in before
        if id(module._parameters) not in alive
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(example)
    model.train(training)
    for handle in handles:
        handle.remove()
    if called:
        raise UserError(
            f"the model calls a {type(called[0]).__name__} that conversion has replaced where it is registered",
            where="model.name",
            mend="hold layers as attributes, or in an nn.ModuleList, alone: not in a plain list too",
        )


def _expose_attention(model: nn.Module) -> None:
    """Lets attention that uses weights of linear layers, or packs several into one, call linear layers instead."""

    def exposed(_: str, module: nn.Module) -> nn.Module:
        if type(module) is nn.MultiheadAttention:
            return MultiheadAttention(module)
        if type(module).__name__ in _WINDOWS and type(module).__module__.startswith("torchvision."):
            return calling_its_layers(module)
        return module

    replace_modules(model, exposed)


def _spare_linear_outputs(model: nn.Module) -> None:
    """Lets no activation overwrite a linear layer's output: over tokens it is a view, and autograd refuses that."""
    for before, module in pairwise(module for _, module in model.named_modules(remove_duplicate=False)):
        if isinstance(before, nn.Linear) and getattr(module, "inplace", False):
            module.inplace = False


def _recompute_attention(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.lean = True


def _normalisers(model: nn.Module, norm: str, centre: bool, gammas: Mapping[str, float]) -> dict[str, Normaliser]:
    """The layers that get normalised weights: convolutions, and linear ones where layer normalisation makes room."""
    layers = weighted_layers(model)
    del layers[next(reversed(layers))]
    if norm != "nsconv":
        return {}
    makes_room = any(isinstance(module, BranchNorm) for module in model.modules())
    return {
        name: Normaliser(gammas.get(name, GAMMA_RELU), centre)
        for name, layer in layers.items()
        if isinstance(layer, nn.Conv2d) or makes_room
    }


def _pruning(sap: SapSettings, is_first: bool, is_output: bool) -> Pruning:
    spared = (is_first and not sap.first_layer) or (is_output and not sap.output_layer)
    if not sap.enabled or spared:
        return Pruning()
    return pruning_of(sap)


def _convert_weighted(
    module: _Weighted, pruning: Pruning, norm: str, normaliser: Normaliser | None, is_output: bool, alpha: float
) -> nn.Module:
    new: _Weighted
    stays = pruning.is_dense and not pruning.follows_weights and alpha == 1
    if isinstance(module, nn.Conv2d):
        # Without a normalisation behind it a convolution needs a bias of its own.
        bias = module.bias is not None or (norm == "none" and not is_output)
        if normaliser is not None:
            new = NSConv2d(**_arguments(module), normaliser=normaliser, pruning=pruning)
        elif not stays:
            new = PrunedConv2d(**_arguments(module), bias=bias, pruning=pruning)
        elif bias and module.bias is None:
            new = nn.Conv2d(**_arguments(module))
        else:
            return module
    elif normaliser is not None:
        new = NSLinear(module.in_features, module.out_features, normaliser=normaliser, pruning=pruning)
    # Attention's output projection is a subclass that its owner never calls.
    elif not stays and type(module) is nn.Linear:
        new = PrunedLinear(module.in_features, module.out_features, module.bias is not None, pruning=pruning)
    else:
        return module
    _carry_over(module, new, alpha)
    return new


def powers(model: nn.Module) -> dict[str, float]:
    """The power of its parameter as which each weight of a converted model acts, by name; without those that are it."""
    found = {
        f"{name}.weight": module.alpha
        for name, module in model.named_modules()
        if isinstance(module, PrunedConv2d | PrunedLinear | NormalisedLayer)
    }
    return {name: alpha for name, alpha in found.items() if alpha != 1}


def _arguments(module: nn.Conv2d) -> dict[str, Any]:
    """Arguments of ``nn.Conv2d`` but the bias."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(module, name) for name in names}


def _carry_over(old: _Weighted, new: _Weighted, alpha: float) -> None:
    with torch.no_grad():
        if alpha != 1:
            new.alpha = alpha  # type: ignore[assignment]
        new.weight.copy_(old.weight if alpha == 1 else root(old.weight, alpha))
        if new.bias is not None:
            new.bias.zero_() if old.bias is None else new.bias.copy_(old.bias)


def _convert_other(module: nn.Module, pruning: Pruning, sap: SapSettings, norm: str) -> nn.Module:
    kind = type(module)
    if kind is nn.BatchNorm2d:
        return _normalisation(module, norm)  # type: ignore[arg-type]
    if kind is nn.BatchNorm1d:
        return _lasting(module, BatchNorm1d)  # type: ignore[arg-type]
    if kind is nn.GroupNorm:
        new = GroupNorm(module.num_groups, module.num_channels, module.eps, module.affine)  # type: ignore[arg-type]
        new.load_state_dict(module.state_dict())
        return new
    if kind is BranchNorm and norm in ("nsconv", "none"):
        return nn.Identity()
    if kind in (nn.LayerNorm, BranchNorm) and not pruning.is_exact:
        return _lean_layer_norm(module, pruning)  # type: ignore[arg-type]
    if kind is nn.Dropout:
        return Dropout(module.p)  # type: ignore[arg-type]
    if kind in (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
        return ChannelDropout(module.p)  # type: ignore[arg-type]
    # Known by name: the class is torchvision's, which is not imported for the networks of our own.
    if kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision."):
        return StochasticDepth(module.p, module.mode)  # type: ignore[arg-type]
    # A smooth activation's derivative is kept rounded; with ratio 0 all gradients are exact.
    if not sap.enabled or (kind in _ROUNDED and not sap.prune_ratio):
        return module
    return _LEAN[kind](module) if kind in _LEAN else module


def _lean_max_pool(stock: nn.MaxPool2d) -> nn.Module:
    """The lean layer, where it can do the same: one byte is a place in a window, and no index of the input."""
    if stock.return_indices or not LeanMaxPool2d.fits(stock.kernel_size):
        return stock
    return LeanMaxPool2d(stock.kernel_size, stock.stride, stock.padding, stock.dilation, stock.ceil_mode)


def _lean_layer_norm(stock: nn.LayerNorm, pruning: Pruning) -> nn.Module:
    has_bias = getattr(stock, "bias", None) is not None
    new = LeanLayerNorm(stock.normalized_shape, stock.eps, stock.elementwise_affine, has_bias, pruning=pruning)
    new.load_state_dict(stock.state_dict())
    return new


def _normalisation(stock: nn.BatchNorm2d, norm: str) -> nn.Module:
    channels = stock.num_features
    if norm == "batch":
        return _lasting(stock, BatchNorm2d)
    groups = {"group": gcd(channels, GROUPS), "layer": 1}
    return GroupNorm(groups[norm], channels) if norm in groups else nn.Identity()


def _lasting(stock: nn.BatchNorm1d | nn.BatchNorm2d, kind: type[BatchNorm1d] | type[BatchNorm2d]) -> nn.Module:
    new = kind(stock.num_features, stock.eps, stock.momentum, stock.affine, stock.track_running_stats)
    new.load_state_dict(stock.state_dict())
    return new
