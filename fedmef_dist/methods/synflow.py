"""Synaptic flow (Tanaka et al. 2020, arXiv 2006.05467): what passes through each weight of a network without data.

The flow R = 1^T |theta_L| ... |theta_1| 1 is taken through a linear twin of the network: absolute weights, no biases,
neither activations nor normalisation. Normalisation must not act, for it would undo what is measured: a layer that
centres its filters would even turn half of the absolute weights negative. Attention passes on the sum of queries, keys
and values, so that each has its flow. What only gates, as squeeze-excitation does, carries none.
"""

import copy
from collections.abc import Callable, Sequence
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedmef_dist.base.errors import UserError
from fedmef_dist.layers.attention import SelfAttention
from fedmef_dist.layers.lean import LeanGELU, LeanHardswish, LeanLeakyReLU, LeanReLU, LeanSiLU
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import keep_largest_of_all

ITERATIONS = 100
REHEARSED_ITERATIONS = 3
_PLAIN: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv2d: nn.Conv2d.forward,
    nn.Linear: nn.Linear.forward,
}
_LEFT_OUT = (
    *(_BatchNorm, nn.GroupNorm, nn.LayerNorm),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU),
    *(LeanReLU, LeanLeakyReLU, LeanSiLU, LeanHardswish, LeanGELU),
)


def _pass_on(module: nn.Module, x: Tensor) -> Tensor:
    return x


def _attend(module: SelfAttention, x: Tensor) -> Tensor:
    return torch.stack(module.in_proj(x).chunk(3, dim=-1)).sum(0)


def linear_twin(model: nn.Module) -> nn.Module:
    """A copy of the network, in float64, that is linear in its input and in each layer's weights, none negative.

    The parameters keep their names. Embeddings are 1, so that any token is an input of ones.
    """
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.abs_()
        for module in twin.modules():
            _make_linear(module)
    return twin


def _make_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Embedding):
        module.weight.fill_(1)
    if isinstance(module, SelfAttention):
        module.attend = MethodType(_attend, module)  # type: ignore[method-assign]
    if isinstance(module, _LEFT_OUT):
        module.forward = MethodType(_pass_on, module)  # type: ignore[method-assign]
    for kind, forward in _PLAIN.items():
        if isinstance(module, kind):
            module.forward = MethodType(forward, module)
            if isinstance(module.bias, Tensor):
                module.bias.zero_()


def _ones(twin: nn.Module, shape: Sequence[int]) -> Tensor:
    """An input of ones, for one sample; tokens where the network embeds them."""
    device = next(twin.parameters()).device
    if any(isinstance(module, nn.Embedding) for module in twin.modules()):
        return torch.zeros(1, *shape, dtype=torch.int64, device=device)
    return torch.ones(1, *shape, dtype=torch.float64, device=device)


def synaptic_flow(model: nn.Module, space: ParameterSpace, shape: Sequence[int], total: int, iterations: int) -> Tensor:
    """The weights that stay, bool (n_prunable,): ``total`` of them.

    Iteration k of K keeps the share (total / n_prunable)^(k/K) of largest score, |dR/dtheta * theta|, in what the one
    before has kept (algorithm 1). Float64 holds the products of many layers.

    Args:
        model: lives in the space; unchanged.
        space: the parameter space with the start weights and a full mask.
        shape: of a sample.
        total: weights to keep.
        iterations: K.

    Raises:
        UserError: the flow of so deep a network is not finite even so.
    """
    twin = linear_twin(model)
    parameters = dict(twin.named_parameters())
    weights = [parameters[layer.name] for layer in space.layers]
    ones = _ones(twin, shape)
    active = torch.ones(space.n_prunable, dtype=torch.bool, device=ones.device)
    for iteration in range(1, iterations + 1):
        scores = _scores(twin, ones, weights, space).masked_fill_(~active, -1)
        kept = round(space.n_prunable * (total / space.n_prunable) ** (iteration / iterations))
        active = keep_largest_of_all(space, scores, kept)
        for layer, weight in zip(space.layers, weights, strict=True):
            weight.detach().mul_(layer.view(active))
    return active


def _scores(twin: nn.Module, ones: Tensor, weights: Sequence[Tensor], space: ParameterSpace) -> Tensor:
    """Each weight's share of the flow, float64 (n_prunable,), in storage order."""
    gradients = torch.autograd.grad(twin(ones).sum(), weights, materialize_grads=True)
    scores = torch.empty(space.n_prunable, dtype=torch.float64, device=ones.device)
    for layer, weight, gradient in zip(space.layers, weights, gradients, strict=True):
        layer.view(scores).copy_(gradient * weight.detach())
    if not bool(scores.isfinite().all()):
        raise UserError(
            "the synaptic flow of this network is beyond what float64 holds",
            where="method.criterion",
            mend="choose another criterion, or a network of fewer layers",
        )
    return scores
