"""SNIP and SynFlow's scores beside github.com/ganguli-lab/Synaptic-Flow, on a small convolutional network."""

import copy

import torch
from reference import checkout, module, tell
from torch import nn
from torch.nn import functional as F

from fedmef_dist.methods.synflow import linear_twin


class Masked(nn.Conv2d):
    """A convolution with a mask that may have a gradient, as their SNIP needs it."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args, bias=False)
        self.mask = torch.ones_like(self.weight)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolves."""
        return F.conv2d(input, self.weight * self.mask, None)


def main() -> None:
    """Scores of both, theirs of SNIP not normalised."""
    path = checkout(__doc__)
    pruners = module(path / "Pruners" / "pruners.py", "synflow_pruners")
    torch.manual_seed(0)
    model = nn.Sequential(Masked(1, 4, 3), nn.ReLU(), Masked(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    layers = [model[0], model[2]]
    images, labels = torch.randn(16, 1, 8, 8), torch.randint(5, (16,))
    pairs = [(layer.mask, layer.weight) for layer in layers]

    snip = pruners.SNIP(pairs)
    plain = copy.deepcopy(model)
    F.cross_entropy(plain(images), labels).backward()
    ours = [(layer.weight.grad * layer.weight).abs() for layer in (plain[0], plain[2])]
    snip.score(model, F.cross_entropy, [(images, labels)], "cpu")
    theirs = [snip.scores[id(layer.weight)] for layer in layers]
    total = sum(float(scores.sum()) for scores in ours)
    tell("SNIP", max(float((one / total - other).abs().max()) for one, other in zip(ours, theirs, strict=True)))

    flow, linear = pruners.SynFlow(pairs), copy.deepcopy(model)
    model[1], model[3] = nn.Identity(), nn.Identity()
    model[5].bias.data.zero_()
    for layer in (linear[0], linear[2]):
        layer.mask = layer.mask.detach().double()
    flow.score(model, None, [(images, labels)], "cpu")
    theirs = [flow.scores[id(layer.weight)] for layer in layers]
    twin = linear_twin(linear)
    weights = [twin[0].weight, twin[2].weight]
    slopes = torch.autograd.grad(twin(torch.ones(1, 1, 8, 8).double()).sum(), weights)
    mine = [slope * weight.detach() for slope, weight in zip(slopes, weights, strict=True)]
    worst = max(float((a - b).abs().max() / b.max()) for a, b in zip(mine, theirs, strict=True))
    tell("SynFlow (theirs in float32), relative to the largest", worst)


if __name__ == "__main__":
    main()
