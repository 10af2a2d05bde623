"""FedDST's readjustment beside github.com/bibikar/feddst: what a client prunes and grows, what the server prunes."""

import sys

import torch
from reference import checkout, module, tell
from torch import Tensor, nn

from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.methods.client_masks import LocalSwap, prune_to_counts
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.growth import GrowthOrder
from fedmef_dist.sparsity.swaps import swap_counts

_SHARE = 0.3


def main() -> None:
    """One network, mask and gradient for both; theirs gets our layer counts in place of its own."""
    path = checkout(__doc__)
    sys.path.insert(0, str(path))
    theirs = module(path / "models.py", "feddst_models", stubs=["prune", "torchvision"])
    net_class = type("Net", (theirs.PrunableNet,), {"_weights_by_layer": lambda net, **_: net.wanted})
    torch.manual_seed(0)
    net = net_class()
    net.conv, net.fc = nn.Conv2d(3, 8, 3), nn.Linear(40, 16)
    theirs.initialize_mask(net)
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "fc": nn.Linear(40, 16)})
    space = ParameterSpace(model, ["conv.weight", "fc.weight"])
    active = torch.rand(space.n_prunable) < 0.4
    space.set_mask(Mask(active))
    gradient = torch.randn(space.n_prunable)
    space.gradient[: space.n_prunable] = gradient
    own = space.layer_counts()
    swaps = swap_counts(space.layers, own, _SHARE)

    start = space.values.clone()
    swap = LocalSwap(space, swaps, 0.5, GrowthOrder(0, 1))
    swap.begin(LocalClient(0))
    swap.prepare_step(1, 2, 0.1)
    ours, pruned = space.mask.active.clone(), active & ~space.mask.active

    def readjusted(given: Tensor) -> Tensor:
        """Their mask, bool (n_prunable,), grown by this gradient."""
        with torch.no_grad():
            for layer, child in zip(space.layers, (net.conv, net.fc), strict=True):
                child.weight.copy_(layer.view(start))
                child.weight_mask.copy_(layer.view(active))
                child.weight.grad = layer.view(given).contiguous()
        net.wanted = dict(zip(("conv", "fc"), (a - xi for a, xi in zip(own, swaps, strict=True)), strict=True))
        net.layer_prune()
        net.wanted = dict(zip(("conv", "fc"), own, strict=True))
        net.layer_grow()
        return masks()

    def masks() -> Tensor:
        found = torch.zeros(space.n_prunable, dtype=torch.bool)
        for layer, child in zip(space.layers, (net.conv, net.fc), strict=True):
            layer.view(found).copy_(child.weight_mask)
        return found

    only_free = gradient.masked_fill(active, 0)
    tell("prune and grow, gradient of inactive weights", int((readjusted(only_free) != ours).sum()), " positions")
    found = readjusted(gradient)
    again = int((found & pruned).sum())
    print(
        f"with the gradient of all: they keep {int(found.sum())} of {int(ours.sum())} weights and grow back {again} of "
        f"{int(pruned.sum())} just pruned; {int((found != ours).sum())} positions differ"
    )

    with torch.no_grad():
        union = torch.rand(space.n_prunable) < 0.6
        space.set_mask(Mask(union))
        space.values[: space.n_prunable] = torch.randn(space.n_prunable) * union
        expected = prune_to_counts(space, space.values[: space.n_prunable].abs(), own)
        for layer, child in zip(space.layers, (net.conv, net.fc), strict=True):
            child.weight.copy_(layer.view(space.values))
            child.weight_mask.copy_(layer.view(union))
        net.layer_prune()
    tell("the server's prune of a union", int((masks() != expected).sum()), " positions")


if __name__ == "__main__":
    main()
