"""A model whose training takes a given time a sample without computing: its forward pass sleeps.

`benchmarks/sleeping.yaml` has it; with it 32 ranks need hardly more than one core.
"""

import argparse
import time

import torch
from torch import Tensor, nn


class Sleeper(nn.Module):
    """A linear classifier of a few pixels, slow by as many seconds a sample as it is told."""

    def __init__(self, *, classes: int, shape: tuple[int, ...], seconds_per_sample: float = 0.001) -> None:
        super().__init__()
        self.seconds_per_sample = seconds_per_sample
        self.flatten, self.linear = nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Sleeps while it trains; float32 (batch, classes)."""
        if self.training and torch.is_grad_enabled():
            time.sleep(self.seconds_per_sample * len(images))
        return self.linear(self.flatten(images))


def main() -> None:
    """Says how to use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("fedmef-dist scale benchmarks/sleeping.yaml --ranks 1,2,4 --predict 8,16,32")


if __name__ == "__main__":
    main()
