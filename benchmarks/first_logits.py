"""How large logits of normalised networks are at the start, before anything is learned.

    python benchmarks/first_logits.py mobilenet_v2 resnet18 mnasnet0_5 efficientnet_v2_s

A residual path that grows from block to block shows here. 64 images of 32 x 32 random pixels, stem cifar.
"""

import argparse

import torch

from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models import ModelSettings, build_model


def main() -> None:
    """Prints the standard deviation of each network's logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    for name in parser.parse_args().models:
        settings, off = ModelSettings(name=name, stem="cifar"), SapSettings(enabled=False)
        model = build_model(settings, off, norm="nsconv", classes=10, shape=(3, 32, 32), seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            print(f"{name} {model.eval()(torch.randn(64, 3, 32, 32)).std().item():.3g}")


if __name__ == "__main__":
    main()
