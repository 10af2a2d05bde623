"""What a user sees: the resident memory of a process that trains, beside the peak that its tensors account for.

    python benchmarks/resident.py configs/cifar10_mobilenet_v2.yaml federation.batch_size=16

Every setting of the arena trains three steps in a process of its own. `start` is what the process has before there is a
model: Python, torch and the package. `kernels` is what the compiled loops for packing add when they are first needed.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import torch

from fedmef_dist.config import Config, load_config
from fedmef_dist.data.shapes import shape_of
from fedmef_dist.report.memory import label
from fedmef_dist.simulation.footprint import compared_settings, random_batch, training_step

MEGABYTE = 10**6


def resident() -> int:
    """Bytes in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def train(config: Config, name: str) -> dict[str, object]:
    """One setting's process: bytes at the start, of the kernels, at the peak; and what its tensors take."""
    torch.set_num_threads(1)
    setting = next(one for one in compared_settings(config) if label(one) == name)
    start = resident()
    if setting.sap.enabled:
        from fedmef_dist.layers.kernels import packing_loops, threshold_loops

        for loops in (threshold_loops, packing_loops):
            loops.prepare(torch.empty(0, dtype=torch.int32).numpy().dtype)
    kernels = resident() - start
    shape = shape_of(config.data)
    step = training_step(config, setting, shape, random_batch(config, shape, torch.device("cpu")))
    for _ in range(3):
        step.seconds()
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = step.measure()
    return {"name": name, "start": start, "kernels": kernels, "most": most, "peak": memory.peak_bytes}


def main() -> None:
    """Reads the command line and runs one process a setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--settings", nargs="+", help="their names as in the arena; all without it")
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    if options.name is not None:
        print(json.dumps(train(config, options.name)))
        return
    print(f"{platform.platform()}, Python {platform.python_version()}; 10^6 bytes")
    print(f"{'':28} {'start':>8} {'kernels':>8} {'resident':>9} {'peak of tensors':>16}")
    for name in options.settings or map(label, compared_settings(config)):
        command = [sys.executable, __file__, str(options.config), *options.overrides, "--name", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        numbers = [row[key] / MEGABYTE for key in ("start", "kernels", "most", "peak")]
        print("{:28} {:8.1f} {:8.1f} {:9.1f} {:16.1f}".format(row["name"], *numbers), flush=True)


if __name__ == "__main__":
    main()
