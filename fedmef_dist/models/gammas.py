"""The gamma of every normalised layer: what makes up for the activation that its input has been through.

Brock et al. 2021 (arXiv 2101.08692) derive it for a layer that reads an activation's output: 1 / the deviation of the
activation over a standard normal input. A layer that reads what no activation has narrowed, such as the output of a
linear bottleneck (Sandler et al. 2018, arXiv 1801.04381), has 1; any more would be multiplied up from block to block.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.models.convert import weighted_layers

# Names of the nodes that torch's autograd puts behind an output.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReluBackward0": F.relu,
    "HardtanhBackward0": F.relu6,
    "LeakyReluBackward0": F.leaky_relu,
    "EluBackward0": F.elu,
    "SiluBackward0": F.silu,
    "HardswishBackward0": F.hardswish,
    "GeluBackward0": F.gelu,
    "TanhBackward0": torch.tanh,
}
_LAYERS = (
    "ConvolutionBackward0",
    "AddmmBackward0",
    "MmBackward0",
    "BmmBackward0",
    "NativeLayerNormBackward0",
    "NativeGroupNormBackward0",
)
# They weigh what another path brings, as in squeeze-and-excitation.
_GATES = ("SigmoidBackward0", "HardsigmoidBackward0")


def gamma_of(activation: Callable[[Tensor], Tensor]) -> float:
    """1 / the standard deviation of ``activation`` over a standard normal input."""
    if activation is F.relu:
        return GAMMA_RELU
    z = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    weight = torch.exp(-0.5 * z * z)
    weight /= weight.sum()
    found = activation(z)
    mean = (weight * found).sum()
    return float((weight * (found - mean) ** 2).sum().rsqrt())


def gammas_of(model: nn.Module, sample: Tensor) -> dict[str, float]:
    """Gamma of each convolution and linear layer, by name; one that a forward pass does not call is left out.

    Of a sum or a concatenation it is the least of the gammas of its parts. A layer that reads the sample itself has
    that of the network's first activation, as the published form has everywhere.

    Args:
        model: a stock network; it is left as it is.
        sample: a batch that it can read.
    """
    found: dict[str, float | None] = {}

    def look(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            found.setdefault(name, _least_behind([*inputs, *named.values()][0].grad_fn))

        return hook

    hooks = [
        layer.register_forward_pre_hook(look(name), with_kwargs=True) for name, layer in weighted_layers(model).items()
    ]
    was_training = model.training
    model.eval()  # statistics stay as they are, and nothing is drawn
    try:
        with torch.enable_grad():
            model(sample)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    first = next((gamma for gamma in found.values() if gamma is not None and gamma != 1), GAMMA_RELU)
    return {name: first if gamma is None else gamma for name, gamma in found.items()}


def _least_behind(node: Any) -> float | None:
    """The least gamma on the ways from an output back to activations or layers; None where all lead to the sample."""
    seen, ahead, least = set(), [node], None
    while ahead:
        node = ahead.pop()
        if node is None or node in seen or node.name() in _GATES:
            continue
        seen.add(node)
        if node.name() in _ACTIVATIONS:
            gamma = gamma_of(_ACTIVATIONS[node.name()])
        elif node.name() in _LAYERS:
            gamma = 1.0
        else:
            ahead.extend(before for before, _ in node.next_functions)
            continue
        least = gamma if least is None else min(least, gamma)
    return least
