"""PruneFL's adjustment beside github.com/jiangyuang/PruneFL: masks of a small network with random squared gradients."""

import sys
from types import SimpleNamespace

import torch
from reference import checkout, module, tell
from torch import nn

from fedmef_dist.methods.prunefl import compete


class Layer(nn.Module):
    """What their rule reads and changes of a layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, 1))
        self.mask = (torch.rand(size, 1) < 0.5).float()
        self.weight.data *= self.mask

    def prune_by_pct(self, share: float) -> None:
        """The ``share`` of smallest magnitude of the active weights leaves, as in their layers."""
        active = self.weight.data[self.mask == 1].abs().sort().values
        self.mask *= (self.weight.data.abs() >= active[int(share * len(active))]).float()


def main() -> None:
    """Six cases; the difference is in positions of the masks."""
    path = checkout(__doc__)
    sys.path.insert(0, str(path))
    rule = module(path / "control" / "algorithm.py", "prunefl_algorithm")
    worst = 0
    for seed in range(6):
        torch.manual_seed(seed)
        sizes, times, constant, share = [300, 80], [2.0, 8.0], 40.0, 0.3
        layers, output = [Layer(size) for size in sizes], nn.Linear(4, 3)
        squares = {f"{place}.weight": torch.rand(size, 1) ** 4 for place, size in enumerate(sizes)}
        squares |= {"out.weight": torch.rand(3, 4), "out.bias": torch.rand(3)}
        before = torch.cat([layer.mask.flatten() for layer in layers]) == 1
        weights = torch.cat([layer.weight.data.flatten() for layer in layers])
        model = SimpleNamespace(
            param_layers=[*layers, output],
            param_layer_prefixes=["0", "1", "out"],
            prunable_layers=layers,
            prunable_layer_prefixes=["0", "1"],
        )
        config = SimpleNamespace(TIME_CONSTANT=constant, COMP_COEFFICIENTS=times, COMM_COEFFICIENT=0.0)
        rule.main_control(model, dict(squares), config, share)
        theirs = torch.cat([layer.mask.flatten() for layer in layers]) == 1

        kept, start = before.clone(), 0
        for size in sizes:
            part = slice(start, start + size)
            active = weights[part].abs().masked_fill(~before[part], torch.inf)
            leaving = active.argsort(stable=True)[: int(share * int(before[part].sum()))]
            kept[start + leaving] = False
            start += size
        gain = torch.cat([squares[f"{place}.weight"].flatten() for place in range(2)]).double()
        time = torch.cat([torch.full((size,), one) for size, one in zip(sizes, times, strict=True)]).double()
        rest = float(squares["out.weight"].sum() + squares["out.bias"].sum())
        ours = compete(gain, time, kept, rest, constant, len(gain))
        worst = max(worst, int((ours != theirs).sum()))
    tell("masks of six cases", worst, " positions")


if __name__ == "__main__":
    main()
