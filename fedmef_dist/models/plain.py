"""The way back: a trained model's function on the stock network that it was converted from."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedmef_dist.layers.filters import normalise
from fedmef_dist.layers.nsconv import NSConv2d, NSLinear
from fedmef_dist.layers.powered import powered
from fedmef_dist.models.convert import powers, weighted_layers

_TOLERANCE = 1e-2


@torch.no_grad()
def acting_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict, weights that act as powers of what is trained as they act; normalised ones before it."""
    alphas = powers(model)
    state = model.state_dict()
    return {name: powered(tensor, alphas[name]) if name in alphas else tensor for name, tensor in state.items()}


@torch.no_grad()
def make_plain(model: nn.Module, stock: nn.Module, images: Tensor) -> bool:
    """Gives ``stock`` the weights with which it computes in evaluation mode what ``model`` computes.

    A normalised convolution becomes a plain one with the weight that acts, inactive weights exactly 0. Where the model
    has no batch normalisation the stock one becomes the identity: mean 0, variance 1 - eps, weight 1. A bias that the
    stock convolution has no place for becomes that of the batch normalisation behind it.

    Args:
        model: what was converted from such a stock network.
        stock: changed.
        images: float32 (B, C, H, W); the two outputs are compared on them.

    Returns:
        Whether the stock network can express the model's function. It cannot do so with group normalisation, nor
        where a bias has no batch normalisation right behind it.
    """
    state = acting_state(model)
    stock.load_state_dict(state, strict=False)
    for name, twin in stock.named_modules():
        trained = model.get_submodule(name)
        if isinstance(twin, nn.BatchNorm2d) and isinstance(trained, nn.Identity):
            _make_identity(twin)
        elif isinstance(trained, NSConv2d | NSLinear):
            assert isinstance(twin.weight, Tensor)
            weight = state[f"{name}.weight"]
            twin.weight.copy_(normalise(weight, trained.gain, trained.mask, trained.normaliser))
    return _move_biases(model, stock) and _agree(model.eval()(images), stock.eval()(images))


def _make_identity(norm: nn.BatchNorm2d) -> None:
    # Its factor is weight / sqrt(variance + eps).
    norm.reset_parameters()
    assert norm.running_var is not None
    norm.running_var.fill_(1 - norm.eps)


def _move_biases(model: nn.Module, stock: nn.Module) -> bool:
    """Takes biases that the stock layers lack to the batch normalisation behind; whether each found its place."""
    layers = [module for module in stock.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    behind = {id(module): follower for module, follower in pairwise(layers)}
    for name, twin in weighted_layers(stock).items():
        bias = model.get_submodule(name).bias
        if not isinstance(bias, Tensor) or twin.bias is not None:
            continue
        norm = behind.get(id(twin))
        if not isinstance(norm, nn.BatchNorm2d) or norm.num_features != bias.numel():
            return False
        norm.bias.copy_(bias)
    return True


def _agree(ours: Tensor, plain: Tensor) -> bool:
    # Biases are placed by the order in which layers are registered. Where a network calls them in another order the
    # outputs are far apart; rounding alone, amplified by a deep network, stays well below the tolerance.
    return bool((ours - plain).abs().max() <= _TOLERANCE * ours.abs().max())
