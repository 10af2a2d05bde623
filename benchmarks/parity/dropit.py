"""Activation pruning beside github.com/chenjoya/dropit (strategy mink): gradients of two layers."""

import sys
from types import MethodType

import torch
from reference import checkout, module, tell
from torch import nn

from fedmef_dist.layers.activation_pruning import PrunedConv2d, PrunedLinear, Pruning


def main() -> None:
    """Gradients of input, weight and bias at a prune ratio of 0.75, which keeps the same number of entries in both."""
    path = checkout(__doc__)
    sys.path.insert(0, str(path))
    sys.modules["dropit"] = type(sys)("dropit")
    sys.modules["dropit"].__path__ = [str(path / "dropit")]
    dropiter = module(
        path / "dropit" / "dropiter.py", "dropit.dropiter", ["transformers", "transformers.pytorch_utils"]
    )
    torch.manual_seed(0)
    for name, ours, stock, x in [
        ("convolution", PrunedConv2d(4, 8, 3, pruning=Pruning(0.75)), nn.Conv2d(4, 8, 3), torch.randn(8, 4, 10, 10)),
        ("linear", PrunedLinear(32, 8, pruning=Pruning(0.75)), nn.Linear(32, 8), torch.randn(16, 32)),
    ]:
        stock.load_state_dict(ours.state_dict())
        stock.dropiter = dropiter.DropITer("mink", 0.75)
        stock.dropiter.autocast = False
        stock.forward = MethodType(dropiter.supports[type(stock)], stock)
        found = []
        for layer in (ours, stock):
            own = x.clone().requires_grad_()
            layer(own).square().sum().backward()
            found.append((own.grad, layer.weight.grad, layer.bias.grad))
        worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*found, strict=True))
        tell(f"{name}, relative to the largest", worst)


if __name__ == "__main__":
    main()
