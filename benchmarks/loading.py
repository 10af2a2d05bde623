"""Reading CIFAR-10-sized data from the cache, and what batches cost beside the training steps that use them.

    python benchmarks/loading.py

Writes 60,000 random images in CIFAR-10's binary format into a temporary folder, decodes them once, then reads them
from the cache in fresh processes, one and two at a time. Then one client of 2,000 samples trains a dense
ResNet8 with batch norm, the quickest step there is, for some epochs, batches and steps timed apart, in turn.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.data.batches import client_batches
from fedmef_dist.data.cifar import CIFAR10, PIXELS, TEST, TRAIN
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.layers.activation_pruning import SapSettings
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.sparsity import ParameterSpace

LOAD = """
import sys, time
from fedmef_dist.data.sources import DataSettings, load_dataset

def clocks():
    return time.perf_counter(), time.process_time()

start = clocks()
data = load_dataset(DataSettings(dataset="cifar10", root=sys.argv[1]), 0)
opened = clocks()
for split in (data.train, data.test):  # one byte of every page
    assert split.images.permute(0, 2, 3, 1).flatten()[::4096].sum()
print(*(after - before for done in (opened, clocks()) for before, after in zip(start, done)))
"""


def write_cifar10(root: Path) -> None:
    """Six files of 10,000 records."""
    folder = root / CIFAR10.folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in TRAIN + TEST:
        records = generator.integers(0, 256, (10_000, 1 + PIXELS), dtype=np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())


def read_cache(root: Path, processes: int) -> list[list[float]]:
    """Seconds in each of some fresh processes at once: until the arrays are mapped, and until every page was touched.

    Each as wall and as processor seconds.
    """
    started = [
        subprocess.Popen([sys.executable, "-c", LOAD, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return [[float(word) for word in process.communicate()[0].split()] for process in started]


def time_batches(root: Path, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Processor seconds for each epoch's batches, and for its training steps; the first epoch is left out."""
    dataset = load_dataset(DataSettings(dataset="cifar10", root=str(root)), 0)
    shape = {"norm": "batch", "classes": 10, "shape": (3, 32, 32), "seed": 0}
    model = build_model(ModelSettings(name="resnet8"), SapSettings(enabled=False), **shape)
    space = ParameterSpace(model, prunable_weights(model))
    client = Client(model, space, OptimizerSettings(), autocast=False)
    values, found = space.values.clone(), []
    for number in range(epochs + 1):
        start = time.process_time()
        key = {"batch_size": 64, "epochs": 1, "seed": 0, "round": number, "client": 0, "augment": True, "device": "cpu"}
        batches = list(client_batches(dataset, np.arange(2000) * 25, **key))
        drawn = time.process_time()
        client.train(RoundPlan(number, values), iter(batches), len(batches), 0.01)
        found.append((drawn - start, time.process_time() - drawn))
    batch_seconds, step_seconds = np.array(found[1:]).T
    return batch_seconds, step_seconds


def main() -> None:
    """Runs all and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15, help="timed epochs of 32 steps")
    parser.add_argument("--repeats", type=int, default=5, help="readings of the cache")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_cifar10(root)
        start = time.perf_counter()
        load_dataset(DataSettings(dataset="cifar10", root=folder), 0)
        print(f"decoding 60,000 images and writing the cache: {time.perf_counter() - start:.2f} s")
        for processes in (1, 2):
            seconds = np.array([read_cache(root, processes) for _ in range(options.repeats)])
            mapped, busy, touched, toiled = np.median(seconds.max(axis=1), axis=0)
            print(
                f"{processes} at once: mapped in {mapped:.3f} s (processor {busy:.3f} s), "
                f"every page touched after {touched:.3f} s (processor {toiled:.3f} s); the slowest, median"
            )
        batch_seconds, step_seconds = time_batches(root, options.epochs)
        share = batch_seconds / step_seconds
        low, middle, high = np.quantile(share, (0.25, 0.5, 0.75))
        batch, step = (1e3 * np.median(seconds) / 32 for seconds in (batch_seconds, step_seconds))
        print(f"a batch {batch:.2f} ms, a step {step:.2f} ms (processor)")
        print(f"batches cost {100 * middle:.1f} % of the steps (quartiles {100 * low:.1f} to {100 * high:.1f} %)")


if __name__ == "__main__":
    main()
