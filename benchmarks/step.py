"""Seconds a training step takes with lean layers and activation pruning, beside the plain network with batch norm.

    python benchmarks/step.py
    python benchmarks/step.py mobilenet_v2 --ratios 0 0.5 --selections exact sampled carried

Every network trains on the same batches in the same process, one step each in turn, so that all feel the same load; a
ratio is that to the plain network's step in the same turn. Beside it: where the time goes, how much of the inputs is
kept, and how well the pruned weight gradient points where the dense one does.
"""

import argparse
import itertools
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fedmef_dist
from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.layers import activation_pruning as pruning
from fedmef_dist.layers.activation_pruning import SapSettings, forget_thresholds
from fedmef_dist.layers.random import set_generator
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask

SEED = 0
RATE = 0.01
Batch = tuple[Tensor, Tensor]


@dataclass
class Contestant:
    """One network and what its steps took: wall and processor seconds."""

    name: str
    model: nn.Module
    space: ParameterSpace
    sgd: MaskedSGD
    autocast: bool
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def step(self, batch: Batch) -> None:
        """One step of local training, as a client makes it."""
        if batch[0].is_cuda:
            self.space.gradient.zero_()
            self.loss(batch).backward()
            self.sgd.step(RATE)
        else:
            with self.sgd.in_backward(RATE) as finish:
                self.loss(batch).backward()
                finish()

    def loss(self, batch: Batch) -> Tensor:
        images, labels = batch
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return F.cross_entropy(self.model(images), labels)

    def timed_step(self, batch: Batch) -> None:
        wall, processor = time.perf_counter(), time.process_time()
        self.step(batch)
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def contestant(
    name: str,
    model_name: str,
    norm: str,
    sap: SapSettings,
    options: argparse.Namespace,
    recompute: Literal["none", "blocks"] = "none",
) -> Contestant:
    """A network with weights from the seed; normalised networks get a random mask."""
    settings = ModelSettings(name=model_name, recompute=recompute)
    model = build_model(settings, sap, norm=norm, classes=10, shape=(3, options.size, options.size), seed=SEED)
    space = ParameterSpace(model, prunable_weights(model))
    if norm == "nsconv":
        counts = layer_counts(space, options.density, "erk")
        space.set_mask(space.mask.next(random_mask(space, counts, numpy_generator(SEED, "mask"))))
    return Contestant(name, model, space, MaskedSGD(space, OptimizerSettings()), options.bf16)


def contestants(model_name: str, options: argparse.Namespace) -> list[Contestant]:
    """The plain network first, recomputed ones, then one for each ratio, selection and storage type; 0 is exact."""
    off, exact = SapSettings(enabled=False), SapSettings(enabled=True, prune_ratio=0)
    found = [
        contestant("plain", model_name, "batch", off, options),
        contestant("plain, recomputed", model_name, "batch", off, options, "blocks"),
        contestant("NSConv, unpacked", model_name, "nsconv", off, options),
        contestant("exact, recomputed", model_name, "nsconv", exact, options, "blocks"),
    ]
    for ratio, selection, storage in itertools.product(options.ratios, options.selections, options.storages):
        sap = SapSettings(enabled=True, prune_ratio=ratio, selection=selection, storage=storage)
        found.append(contestant(f"p={ratio:g} {selection} {storage}", model_name, "nsconv", sap, options))
    return found


def batches(options: argparse.Namespace) -> Iterator[Batch]:
    """Images of smooth noise, channels_last, with labels, all from the seed."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        coarse = torch.randn(options.batch, 3, options.size // 4, options.size // 4, generator=generator)
        images = F.interpolate(coarse, size=options.size, mode="bilinear")
        labels = torch.randint(10, (options.batch,), generator=generator)
        yield images.contiguous(memory_format=torch.channels_last), labels


def race(found: list[Contestant], options: argparse.Namespace) -> None:
    """Steps in turn; who begins changes from turn to turn."""
    source = batches(options)
    for turn in range(options.warm_up + options.steps):
        batch = next(source)
        if turn == options.warm_up:
            for one in found:
                one.wall.clear()
                one.processor.clear()
        for at in range(len(found)):
            found[(turn + at) % len(found)].timed_step(batch)


def report(model_name: str, found: list[Contestant], options: argparse.Namespace) -> None:
    """Medians, and of the ratios to the plain network's step in the same turn median and quartiles."""
    print(
        f"\n{model_name}: {found[0].space.n_parameters:,} parameters, {options.steps} steps of {options.batch} images"
    )
    print(f"  {'':24} {'wall':>8} {'ratio':>7} {'quartiles':>15}   {'processor':>9} {'ratio':>7} {'quartiles':>15}")
    for one in found:
        parts = []
        for clock in ("wall", "processor"):
            seconds = np.array(getattr(one, clock))
            ratios = seconds / np.array(getattr(found[0], clock))
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            parts.append(f"{np.median(seconds):6.3f} s {middle:7.3f} {low:7.3f}-{high:.3f}")
        print(f"  {one.name:24} {'    '.join(parts)}", flush=True)


@contextmanager
def stopwatch(model: nn.Module) -> Iterator[dict[str, list[float]]]:
    """Seconds of every leaf module's forward pass and of its backward function alone, by name."""
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    begun: dict[tuple[str, int], float] = {}

    def start(name: str, direction: int) -> None:
        begun[name, direction] = time.perf_counter()

    def stop(name: str, direction: int) -> None:
        seconds[name][direction] += time.perf_counter() - begun[name, direction]

    def left(name: str, output: Tensor) -> None:
        stop(name, 0)
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(lambda grads: start(name, 1))
            output.grad_fn.register_hook(lambda inputs, outputs: stop(name, 1))

    handles: list[Any] = []
    for name, module in model.named_modules():
        if not list(module.children()) and not isinstance(module, nn.Identity):
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: start(name, 0)))
            handles.append(module.register_forward_hook(lambda m, i, output, name=name: left(name, output)))
    yield seconds
    for handle in handles:
        handle.remove()


def breakdown(one: Contestant, options: argparse.Namespace) -> None:
    """Milliseconds by kind of module, and on request by module, as the mean of three steps."""
    source, steps = batches(options), 3
    with stopwatch(one.model) as seconds:
        for _ in range(steps):
            one.step(next(source))
    kinds: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    print(f"  {one.name}: milliseconds{'':12}{'modules':>8} {'forward':>8} {'backward':>8}")
    for name, times in seconds.items():
        kind = type(one.model.get_submodule(name)).__name__
        kinds[kind] += [1, *(1000 * value / steps for value in times)]
        if options.modules:
            print(f"    {name:32} {kind:12} {1000 * times[0] / steps:8.2f} {1000 * times[1] / steps:8.2f}")
    for kind, (count, forward, backward) in sorted(kinds.items(), key=lambda item: -item[1][1:].sum()):
        print(f"    {kind:32}{count:8.0f} {forward:8.1f} {backward:8.1f}")


@contextmanager
def counting() -> Iterator[list[tuple[int, int]]]:
    """Collects (kept, wanted) elements of every input that is pruned while it is open."""
    counts: list[tuple[int, int]] = []
    original = pruning.pack_largest

    def counted(rows: Tensor, count: int, selector: Any) -> tuple[Tensor, Tensor, list[int]]:
        bitmap, values, kept = original(rows, count, selector)
        wanted = min(count * rows.shape[0], int(rows.count_nonzero()))
        counts.append((sum(kept), wanted))
        return bitmap, values, kept

    pruning.pack_largest = counted
    try:
        yield counts
    finally:
        pruning.pack_largest = original


def weight_gradient(one: Contestant, values: Tensor, batch: Batch) -> list[Tensor]:
    """Gradients of the active weights at these values (float32 (total,)), a tensor a layer."""
    one.space.load(values)
    one.space.gradient.zero_()
    set_generator(one.model, torch.Generator().manual_seed(SEED))  # the same dropout for all
    one.loss(batch).backward()
    gradient = one.space.gradient[: one.space.n_prunable] * one.space.mask.active
    return [gradient[layer.start : layer.stop] for layer in one.space.layers]


def faithfulness(found: list[Contestant], dense: Contestant, options: argparse.Namespace) -> None:
    """Kept share against the wanted one, and cosine of the weight gradient to that without pruning, over five batches.

    All are asked at the same weights, those of the network without pruning after as many steps as the race had.
    """
    source = batches(options)
    for _ in range(options.warm_up + options.steps):
        dense.step(next(source))
    values = dense.space.values.clone()
    asked = [next(source) for _ in range(5)]
    exact = [weight_gradient(dense, values, batch) for batch in asked]
    for one in found:
        forget_thresholds(one.model.modules())
        with counting() as counts:
            pruned = [weight_gradient(one, values, batch) for batch in asked]
        deviation = max((abs(kept / wanted - 1) for kept, wanted in counts if wanted), default=0.0)
        pairs = list(zip(pruned, exact, strict=True))
        whole = np.mean([cosine(torch.cat(mine), torch.cat(theirs)) for mine, theirs in pairs])
        layers = np.array([[cosine(*layer) for layer in zip(*pair, strict=True)] for pair in pairs]).mean(0)
        print(
            f"  {one.name:24} kept share off by at most {100 * deviation:.3f} %; cosine of the weight gradient to the "
            f"dense one {whole:.4f}, layers {layers.min():.4f} to {layers.max():.4f}"
        )


def cosine(left: Tensor, right: Tensor) -> float:
    return F.cosine_similarity(left, right, dim=0).item()


def header(options: argparse.Namespace) -> str:
    """Hardware, commit and versions, for the result file."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    return (
        f"{cpu[0]}, {len(cpu)} cores, {platform.platform()}; commit {commit}, fedmef_dist {fedmef_dist.__version__}, "
        f"torch {torch.__version__}\n{options.threads} thread(s), {options.size}x{options.size} pixels, density "
        f"{options.density}, {'bf16 autocast' if options.bf16 else 'fp32'}, stem cifar"
    )


def main() -> None:
    """Reads the command line and runs the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["resnet18", "mobilenet_v2"])
    parser.add_argument(
        "--ratios", type=float, nargs="+", default=[0, 0.5, 0.9], help="prune ratios; 0 packs without loss"
    )
    parser.add_argument("--selections", nargs="+", default=[SapSettings().selection])
    parser.add_argument("--storages", nargs="+", default=["fp32"])
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each network")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="train under autocast")
    parser.add_argument("--modules", action="store_true", help="also print every module's time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options))
    for model_name in options.models:
        found = contestants(model_name, options)
        race(found, options)
        report(model_name, found, options)
        for one in found:
            breakdown(one, options)
        dense = contestant("dense", model_name, "nsconv", SapSettings(enabled=False), options)
        faithfulness([one for one in found if one.name.startswith("p=")], dense, options)


if __name__ == "__main__":
    main()
