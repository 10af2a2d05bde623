"""FLASH's layer counts and masks beside github.com/SaraBabakN/flash_fl: what the server makes of clients' masks."""

import tempfile
from pathlib import Path

import torch
from reference import checkout, module, tell
from torch import nn

from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.flash import Flash, FlashSettings
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.exact_sum import FixedPoint
from fedmef_dist.sums.position_sum import Sums


def main() -> None:
    """Masks of one adjustment (jmwst, sensitivity 'avg') for three clients of equal weight."""
    path = checkout(__doc__)
    theirs = module(path / "utiles.py", "flash_utiles")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20, bias=False), nn.Linear(20, 10, bias=False), nn.Linear(10, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    masks = [{layer.name: (torch.rand(layer.shape) < 0.3).float() for layer in space.layers} for _ in range(3)]
    merged = {layer.name: torch.randn(layer.shape) for layer in space.layers}
    union = sum(torch.cat([mask[layer.name].flatten() for layer in space.layers]) for mask in masks) > 0
    values = torch.cat([merged[layer.name].flatten() for layer in space.layers]) * union
    merged = {layer.name: layer.view(values) for layer in space.layers}
    active = sum(int(mask.sum()) for one in masks for mask in one.values()) / 3
    target = 0.8 * active / space.n_prunable
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body.pt"
        torch.save({layer.name: layer.shape for layer in space.layers}, body)
        found = theirs.get_next_round_mask(masks, merged, target, str(body), "avg")
    expected = torch.cat([found[layer.name].flatten() for layer in space.layers]) == 1

    density = (target * space.n_prunable + space.n_dense) / space.n_parameters
    method = Flash(FlashSettings(density=density, variant="jmwst"), space, MethodContext())
    votes = sum(torch.cat([mask[layer.name].flatten() for layer in space.layers]) for mask in masks).long()
    space.set_mask(Mask(union))
    state = torch.cat([values, torch.zeros(space.total - space.n_prunable)])
    plan = method.plan(1, state)
    ours = method.next_mask(plan, state, {"weights": Sums(None, votes, 3, FixedPoint(20))})
    tell(
        "masks",
        int((ours != expected).sum()),
        f" of {int(expected.sum())} positions (they cut each count, ours sum up)",
    )


if __name__ == "__main__":
    main()
