"""Floating-point operations of training, modelled from the layers and the mask."""

from math import log2, prod

import torch
from torch import Tensor, nn

from fedmef_dist.layers.attention import SelfAttention
from fedmef_dist.sparsity import ParameterSpace

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, SelfAttention)


def layer_flops(model: nn.Module, example: Tensor) -> dict[str, tuple[int, int]]:
    """Dense forward FLOPs (two a multiply-add) and input elements of each convolution and linear layer, for one sample.

    A layer counts as often as it is applied: at each pixel of its output, at each token. Attention itself, which has no
    weights, is two products of tokens with tokens.

    Args:
        model: any network.
        example: a batch of one sample.
    """
    flops: dict[str, tuple[int, int]] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            done, elements = flops.get(name, (0, 0))
            if isinstance(module, SelfAttention):
                flops[name] = done + 4 * inputs[0].numel() * inputs[0].shape[1], elements
                return
            weight = module.weight
            assert isinstance(weight, Tensor)
            positions = output.numel() // weight.shape[0]
            flops[name] = done + 2 * positions * weight.numel(), elements + inputs[0].numel()

        return hook

    hooks = [
        module.register_forward_hook(note(name))  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
    ]
    training = model.training
    device = next(model.parameters()).device
    with torch.no_grad():
        model.eval()(example.to(device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return flops


class FlopsLedger:
    """Modelled FLOPs of a cohort's training in one round (FedMef, section 4).

    A training step costs three forward passes; forward and backward are counted with each layer's density. FedMef adds
    4 FLOPs an active weight and step (NSConv and the penalty), n log2 n for choosing among n cached activations, and
    one dense weight gradient (2 F_d) a gradient batch in an adjusting round.
    """

    def __init__(self, model: nn.Module, space: ParameterSpace, example: Tensor, prunes_activations: bool) -> None:
        per_layer = layer_flops(model, example)
        names = {layer.name.removesuffix(".weight") for layer in space.layers}
        self.space = space
        self.prunable = [per_layer.get(layer.name.removesuffix(".weight"), (0, 0))[0] for layer in space.layers]
        self.rest = sum(flops for name, (flops, _) in per_layer.items() if name not in names)
        self.dense = sum(flops for flops, _ in per_layer.values())
        self.normalises = any(layer.centred for layer in space.layers)
        self.selection = sum(n * log2(n) for _, n in per_layer.values() if n) if prunes_activations else 0.0

    def forward(self, counts: list[int]) -> float:
        """Forward FLOPs of one sample with so many active weights in the layers."""
        shares = [
            flops * count / prod(layer.shape)
            for flops, count, layer in zip(self.prunable, counts, self.space.layers, strict=True)
        ]
        return self.rest + sum(shares)

    def round(self, counts: list[int], samples: int, steps: int, gradient_samples: int) -> float:
        """FLOPs of a cohort.

        Args:
            counts: active weights of the layers.
            samples: how many were trained on, over all clients and epochs.
            steps: SGD steps, over all clients.
            gradient_samples: samples on which clients took gradients of inactive weights.
        """
        sample = 3 * self.forward(counts) + self.selection
        extra = 4 * sum(counts) * steps if self.normalises else 0
        return sample * samples + extra + 2 * self.dense * gradient_samples

    def preparation(self, forward_samples: int, gradient_samples: int) -> float:
        """FLOPs before the first round: dense forward passes, and those that also come back with every gradient."""
        return self.dense * (forward_samples + 3 * gradient_samples)
