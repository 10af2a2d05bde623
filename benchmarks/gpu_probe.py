"""What a training step and a round cost on a GPU: times, launches, host waits, bits. Started by ``gpu.sh``.

    python benchmarks/gpu_probe.py probe.json [PART ...] [--seconds 150]

Every measurement stands alone: one that fails is written down as its error, and what does not fit the time is left out
and said so. Without a GPU the same code runs on the CPU with small batches, to try the script.
"""

import argparse
import hashlib
import json
import platform
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

import fedmef_dist
from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.clients.client import Client
from fedmef_dist.clients.optimizer import MaskedSGD, OptimizerSettings
from fedmef_dist.clients.passes import CudaRecorder, Passes
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.gpu import same_bits
from fedmef_dist.cluster.group import RuntimeSettings, open_group
from fedmef_dist.cluster.transport import TorchTransport
from fedmef_dist.config import parse_config
from fedmef_dist.layers.activation_pruning import SapSettings, keep, pruning_of, prunings, restore
from fedmef_dist.layers.room import without_waiting
from fedmef_dist.models import ModelSettings, build_model, prunable_weights
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.sparsity.allocation import layer_counts, random_mask

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
SEED, RATE = 0, 0.01
OFF = SapSettings(enabled=False)


def pruned(ratio: float, **more: Any) -> tuple[str, SapSettings]:
    return "nsconv", SapSettings(enabled=True, prune_ratio=ratio, **more)


CASES: dict[str, tuple[str, SapSettings]] = {
    "fedavg": ("batch", OFF),
    "nsconv": ("nsconv", OFF),
    "exact packing": pruned(0),
    "p=0.5 exact": pruned(0.5),
    "p=0.9 exact": pruned(0.9),
    "p=0.9 sampled": pruned(0.9, selection="sampled"),
    "p=0.9 carried": pruned(0.9, selection="carried"),
    "p=0.9 sample": pruned(0.9, scope="sample"),
}
PARTS: dict[str, Callable[["Report"], None]] = {}


class Report:
    """Collects measurements, prints each as it comes, and writes all of them after each."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.found: dict[str, Any] = {}

    def measure(self, name: str, action: Callable[[], Any]) -> None:
        """Notes what ``action`` returns, or its error, or that there was no time for it."""
        if time.monotonic() > self.end:
            self.found[name] = "left out: no time"
        else:
            try:
                self.found[name] = action()
            except Exception as error:  # one failed measurement must not cost the others
                self.found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        print(f"{name}: {self.found[name]}", flush=True)
        self.path.write_text(json.dumps(self.found, indent=1, default=str))


def part(function: Callable[[Report], None]) -> Callable[[Report], None]:
    PARTS[function.__name__.replace("_", "-")] = function
    return function


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def milliseconds(action: Callable[[], Any], repeats: int = 20, warm_up: int = 3) -> float:
    """Median of the wall time from launch to the end of its work on the device."""
    if not GPU:
        repeats, warm_up = 2, 1
    for _ in range(warm_up):
        action()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        action()
        wait()
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 4)


def contestant(
    model: str, norm: str, sap: SapSettings, batch: int, recorder: CudaRecorder | None = None, **settings: Any
) -> tuple[Callable[[], None], ParameterSpace]:
    """A network on the device with weights from the seed, and one step of its training on a fixed batch."""
    torch.manual_seed(SEED)  # of what layers drop
    network = build_model(ModelSettings(name=model, **settings), sap, norm=norm, classes=10, shape=(3, 32, 32), seed=0)
    network.to(DEVICE).train()
    space = ParameterSpace(network, prunable_weights(network))
    if norm == "nsconv":
        counts = layer_counts(space, 0.1, "erk")
        space.set_mask(space.mask.next(random_mask(space, counts, numpy_generator(SEED, "mask"))))
    sgd = MaskedSGD(space, OptimizerSettings())
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, 3, 32, 32, generator=generator).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(DEVICE)
    passes = Passes(network, space, Client(network, space, OptimizerSettings(), autocast=False).loss, recorder)
    rooms = [pruning.room for pruning in prunings(network.modules())]

    def step() -> None:
        with without_waiting(rooms):
            passes.run((images, labels))
        sgd.step(RATE)

    return step, space


def digest_of(space: ParameterSpace) -> str:
    return hashlib.sha256(space.values.cpu().numpy().tobytes()).hexdigest()


def runtime_calls(step: Callable[[], None]) -> dict[str, int]:
    """How often one step calls CUDA's runtime: launches, copies, waits."""
    step()
    wait()
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * GPU) as profiled:
        step()
    counts = Counter(event.name for event in profiled.events() if event.name.startswith("cu"))
    return {name: counts[name] for name in counts if any(word in name for word in ("Launch", "Synchronize", "Memcpy"))}


def host_waits(step: Callable[[], None]) -> int:
    """The operations of one step that make the host wait, as torch itself finds them."""
    if not GPU:
        return 0
    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in caught)


@part
def steps(report: Report) -> None:
    """A step of each family: milliseconds, launches, waits, peak memory."""
    cases = [(model, name, {}) for model in ("resnet18", "resnet8") for name in CASES]
    cases += [
        ("resnet18", "nsconv", {"recompute": "blocks"}),
        ("cnn", "fedavg", {}),
        ("mobilenet_v2", "p=0.9 exact", {}),
    ]
    for model, name, more in cases:

        def one(model: str = model, name: str = name, more: dict[str, Any] = more) -> dict[str, Any]:
            step, _ = contestant(model, *CASES[name], 64 if GPU else 4, **more)
            found = {"ms": milliseconds(step), "waits": host_waits(step), **runtime_calls(step)}
            if GPU:
                torch.cuda.reset_peak_memory_stats()
                step()
                found["peak MB"] = torch.cuda.max_memory_allocated() // 10**6
            return found

        report.measure(f"step {model} {name}{' recompute' if more else ''}", one)


@part
def kept(report: Report) -> None:
    """What a layer keeps of an input, and back: selection and packing, milliseconds and GB/s of the input."""
    for count in (1 << 16, 1 << 20, 1 << 22):
        for ratio, selection in ((0.5, "exact"), (0.9, "exact"), (0.9, "carried"), (0.0, "exact")):

            def one(count: int = count, ratio: float = ratio, selection: Any = selection) -> dict[str, Any]:
                x = torch.randn(1, count, generator=torch.Generator().manual_seed(SEED)).relu().to(DEVICE)
                pruning = pruning_of(SapSettings(enabled=True, prune_ratio=ratio, selection=selection))
                saved = keep(x.clone(), pruning)
                there = milliseconds(lambda: keep(x.clone(), pruning))
                back, copy = milliseconds(lambda: restore(*saved)), milliseconds(lambda: x.clone())
                return {"keep and clone ms": there, "restore ms": back, "clone ms": copy}

            report.measure(f"keep {count} p={ratio} {selection}", one)


@part
def graphs(report: Report) -> None:
    """A training step as a client makes it, computed and replayed as a CUDA graph: milliseconds, and the same bits."""

    def one(model: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        digests = set()
        for way, recorder in (("eager", None), ("graph", CudaRecorder())):
            step, space = contestant(model, *CASES[name], 64, recorder)
            for _ in range(6):
                step()
            digests.add(digest_of(space))
            found |= {f"{way} ms": milliseconds(step), f"{way} calls": sum(runtime_calls(step).values())}
        return {**found, "same bits": len(digests) == 1}

    most = ("fedavg", "nsconv", "exact packing", "p=0.5 exact", "p=0.9 exact", "p=0.9 carried")
    names = {"resnet18": most, "resnet8": most, "mobilenet_v2": ("fedavg", "p=0.9 exact"), "cnn": ("fedavg",)}
    for model, own in names.items():
        for name in own:
            report.measure(f"graph {model} {name}", lambda model=model, name=name: one(model, name))


@part
def bits(report: Report) -> None:
    """The same bits twice, with and without cuDNN's deterministic algorithms; what is kept has the CPU's bits."""

    def results(deterministic: bool, case: str) -> int:
        torch.backends.cudnn.deterministic = deterministic
        found = set()
        for _ in range(3):
            step, space = contestant("resnet18", *CASES[case], 64 if GPU else 4)
            for _ in range(5):
                step()
            found.add(digest_of(space))
        return len(found)

    for case in ("fedavg", "p=0.9 exact"):
        for deterministic in (False, True):
            name = f"different results of 3 equal trainings, {case}, cudnn.deterministic={deterministic}"
            report.measure(name, lambda case=case, deterministic=deterministic: results(deterministic, case))

    def strict(case: str) -> str:
        torch.use_deterministic_algorithms(True)
        try:
            contestant("resnet18", *CASES[case], 64 if GPU else 4)[0]()
        finally:
            torch.use_deterministic_algorithms(True, warn_only=True)
        return "all deterministic"

    for case in CASES:
        report.measure(f"operations of a step, {case}", lambda case=case: strict(case))

    def against_cpu() -> str:
        differing, cases = 0, 0
        for dtype in (torch.float32, torch.bfloat16):
            for count in (1, 1000, 1 << 20):
                x = torch.randn(2, count, generator=torch.Generator().manual_seed(count)).relu().to(dtype)
                x[0, ::3] = 1
                pruning = pruning_of(SapSettings(enabled=True, prune_ratio=0.5))
                here, there = restore(*keep(x, pruning)), restore(*keep(x.to(DEVICE), pruning))
                differing, cases = differing + (not torch.equal(here, there.cpu())), cases + 1
        return f"{differing} of {cases} differ from the CPU"

    report.measure("what is kept, bits", against_cpu)


@part
def precision(report: Report) -> None:
    """A FedAvg step of ResNet18 in fp32, with TF32, and under bf16 autocast."""

    def one(tf32: bool) -> float:
        with same_bits(DEVICE, tf32=tf32):
            return milliseconds(contestant("resnet18", *CASES["fedavg"], 64 if GPU else 4)[0])

    for tf32 in (False, True):
        report.measure(f"fedavg resnet18 ms, tf32={tf32}", lambda tf32=tf32: one(tf32))


@part
def host(report: Report) -> None:
    """A ResNet18 state between device and host, and its digest."""

    def one() -> dict[str, float]:
        values = torch.randn(11_170_000, device=DEVICE)
        pinned = torch.empty(values.shape, pin_memory=GPU)
        pageable = values.cpu()
        start = time.perf_counter()
        hashlib.sha256(pageable.numpy().tobytes()).digest()
        digest = time.perf_counter() - start
        return {
            "to pageable ms": milliseconds(lambda: values.cpu()),
            "from pageable ms": milliseconds(lambda: pageable.to(DEVICE)),
            "to pinned ms": milliseconds(lambda: pinned.copy_(values, non_blocking=True)),
            "sha256 ms": round(1000 * digest, 1),
        }

    report.measure("resnet18 state", one)


@part
def nccl(report: Report) -> None:
    """Which types NCCL moves, in a group of one rank."""

    def one() -> str:
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=DEVICE)
        transport, refused = TorchTransport(), []
        for dtype in (torch.int64, torch.uint8, torch.int8, torch.bool, torch.float32, torch.float64):
            x = torch.ones(5, dtype=dtype, device=DEVICE)
            try:
                transport.all_reduce(x)
                transport.broadcast(x, 0)
                transport.all_gather(x.new_empty(1, 5), x)
                wait()
            except RuntimeError as error:
                refused.append(f"{dtype}: {str(error)[:80]}")
        transport.barrier()
        transport.close()
        return "; ".join(refused) or "all types work"

    report.measure("nccl", one if GPU else lambda: "needs a GPU")


CNN = {"name": "cnn"}
GREY = {"dataset": "synthetic", "augment": False, "synthetic": {"samples": 60_000, "channels": 1, "image_size": 28}}
COLOUR = {"dataset": "synthetic", "augment": True, "synthetic": {"samples": 50_000}}
# W1 and W2 of round.py on images of the same shape, and BlazeFL's example: 100 clients, 5 epochs, batch 50.
WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {
        "data": {**GREY, "partition": {"scheme": "dirichlet", "alpha": 0.5}},
        "model": CNN,
        "federation": {"clients": 100, "clients_per_round": 10, "local_epochs": 1, "batch_size": 32},
    },
    "W2": {
        "data": {**GREY, "partition": {"scheme": "iid"}},
        "model": {**CNN, "width": 0.25, "hidden": 0},
        "federation": {"clients": 1000, "clients_per_round": 100, "local_epochs": 1, "batch_size": 20},
    },
    "BlazeFL's shape": {
        "data": {**COLOUR, "partition": {"scheme": "iid"}},
        "model": CNN,
        "federation": {"clients": 100, "clients_per_round": 20, "local_epochs": 5, "batch_size": 50},
    },
    "FedMef ResNet18": {
        "data": {**COLOUR, "partition": {"scheme": "iid"}},
        "model": {"name": "resnet18"},
        "method": {"name": "fedmef", "density": 0.1},
        "sap": {"prune_ratio": 0.9},
        "optimizer": {"lr": 0.001},
        "federation": {"clients": 100, "clients_per_round": 4, "local_epochs": 1, "batch_size": 64},
    },
}


def simulation_of(name: str, group: Any, slots: int) -> Simulation:
    common = {"method": {"name": "fedavg"}, "optimizer": {"lr": 0.05}, "evaluation": {"every": 10**7}}
    tree = common | WORKLOADS[name]
    tree["federation"] = {**tree["federation"], "rounds": 10**6}
    if not GPU:
        tree["data"] = {**tree["data"], "synthetic": {**tree["data"]["synthetic"], "samples": 2_000}}
        tree["model"] = {"name": "cnn", "width": 0.25}
    if slots > 1:
        tree["runtime"] = {"slots": slots}
    simulation = Simulation(parse_config(tree, name), group)
    simulation.start()
    return simulation


@part
def rounds(report: Report) -> None:
    """Seconds a round takes with 1, 2 and 4 clients beside each other, samples a second, waits, and one digest."""
    with open_group(detect({}), RuntimeSettings()) as group:
        for name in WORKLOADS:
            for slots in (1, 2, 4):

                def one(name: str = name, slots: int = slots) -> dict[str, Any]:
                    simulation = simulation_of(name, group, slots)
                    seconds, samples, trained = [], 0, 0.0
                    for number in (1, 2, 3):
                        simulation.round = number
                        wait()
                        start = time.perf_counter()
                        metrics = simulation.play_round()
                        wait()
                        seconds.append(time.perf_counter() - start)
                        samples, trained = metrics["train/samples"], metrics["time/train"]
                    epochs = simulation.config.federation.local_epochs
                    return {
                        "seconds": [round(one, 3) for one in seconds],
                        "train s": round(trained, 3),
                        "samples a second": round(samples * epochs / seconds[-1]),
                        "digest": simulation.server.digest()[:16],
                    }

                report.measure(f"round {name}, slots {slots}", one)


@part
def round_waits(report: Report) -> None:
    """What one round calls of CUDA's runtime, by the profiler; and where torch sees the host wait."""

    def one(name: str) -> dict[str, Any]:
        with open_group(detect({}), RuntimeSettings()) as group:
            simulation = simulation_of(name, group, 1)
            simulation.round = 1
            simulation.play_round()
            simulation.round = 2
            places: Counter[str] = Counter()
            if GPU:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("always")
                    warnings.showwarning = lambda message, *rest: places.update([place()])
                    simulation.play_round()
            finally:
                if GPU:
                    torch.cuda.set_sync_debug_mode("default")
            return {"waits": sum(places.values()), "where": places.most_common(12)}

    for name in ("W1", "FedMef ResNet18"):
        report.measure(f"waits of a round, {name}", lambda name=name: one(name))


def place() -> str:
    """The innermost line of this package that is running."""
    frame: Any = sys._getframe()
    while frame is not None and "fedmef_dist" not in Path(frame.f_code.co_filename).parts:
        frame = frame.f_back
    return "elsewhere" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def machine() -> Iterator[str]:
    yield f"fedmef_dist {fedmef_dist.__version__}, torch {torch.__version__}, python {platform.python_version()}"
    if GPU:
        properties = torch.cuda.get_device_properties(0)
        yield f"{properties.name}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"default: all of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=150, help="no measurement begins after so long")
    options = parser.parse_args()
    report = Report(options.out, options.seconds)
    with same_bits(DEVICE):  # what a run sets, and what it costs
        report.measure("machine", lambda: "; ".join(machine()))
        for name in options.parts:
            if name != "graphs" or GPU:
                report.measure(f"part {name}", lambda name=name: PARTS[name](report))


if __name__ == "__main__":
    main()
