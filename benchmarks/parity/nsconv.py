"""NSConv's acting weight beside ScaledStdConv2d of github.com/huggingface/pytorch-image-models, all weights active."""

import sys
from types import ModuleType, SimpleNamespace

import torch
from reference import checkout, module, tell

from fedmef_dist.layers.filters import GAMMA_RELU
from fedmef_dist.layers.nsconv import NSConv2d


def main() -> None:
    """Outputs of one layer with the same weights, gains and inputs; theirs with an epsilon of 0."""
    path = checkout(__doc__)
    for name in ("timm", "timm.layers"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(path / name.replace(".", "/"))]
    sys.modules["timm.layers._fx"] = SimpleNamespace(register_notrace_module=lambda cls: cls)
    theirs = module(path / "timm" / "layers" / "std_conv.py", "timm.layers.std_conv").ScaledStdConv2d
    torch.manual_seed(0)
    ours = NSConv2d(8, 16, 3, padding=1)
    theirs = theirs(8, 16, 3, padding=1, bias=True, gamma=GAMMA_RELU, eps=1e-12)
    with torch.no_grad():
        ours.gain.uniform_(0.5, 1.5)
        ours.bias.normal_()
        theirs.weight.copy_(ours.weight)
        theirs.bias.copy_(ours.bias)
        theirs.gain.copy_(ours.gain.view_as(theirs.gain))
        x = torch.randn(4, 8, 12, 12)
        tell("outputs", float((ours(x) - theirs(x)).abs().max()))


if __name__ == "__main__":
    main()
