"""How long a local step takes with SGD, Adam and AdamW, side by side: median of a turn of each.

    python benchmarks/optimizers.py                        # resnet8 on digits, as in configs/quickstart.yaml
    python benchmarks/optimizers.py --config configs/fashion_mnist_14.yaml --turns 30

Prints milliseconds of a whole step (forward, backward, update) and each as a multiple of SGD's in the same turn.
"""

import argparse
import platform
from pathlib import Path
from statistics import median

import torch

from fedmef_dist.config import Config, load_config
from fedmef_dist.data.shapes import shape_of
from fedmef_dist.simulation.footprint import own_setting, random_batch, training_step

ROOT = Path(__file__).parent.parent
NAMES = {"sgd": [], "sgd, momentum 0.9": ["optimizer.momentum=0.9"], "adam": ["optimizer.name=adam"],
         "adamw": ["optimizer.name=adamw", "optimizer.weight_decay=0.01"]}  # fmt: skip


def step_of(config: Config):
    shape = shape_of(config.data)
    return training_step(config, own_setting(config), shape, random_batch(config, shape, torch.device("cpu")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = {name: step_of(load_config(options.config, changes)) for name, changes in NAMES.items()}
    turns = [{name: step.seconds() for name, step in steps.items()} for _ in range(options.turns + 2)][2:]
    print(f"{options.config}, 1 thread, {options.turns} turns, torch {torch.__version__}, {platform.processor()}")
    for name in steps:
        milliseconds = 1000 * median(turn[name] for turn in turns)
        print(f"{name:20} {milliseconds:8.2f} ms  {median(turn[name] / turn['sgd'] for turn in turns):.3f} x")


if __name__ == "__main__":
    main()
