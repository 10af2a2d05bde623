"""Mutated configurations, run directories and data files: each is refused with status 2, or the run is right.

    python tests/fuzz.py --inputs 510 --seed 0

A quarter of the inputs each: a configuration file whose text or values were changed; the directory of a run, of which a
file was damaged, or changed and signed again as a stranger could; files of CIFAR-10 and Fashion-MNIST; and for the
commands ``compare`` and ``status`` a run directory with damaged, foreign, endless and special files. Every input goes
through a whole command (``run``, unless said otherwise) in a forked process with limits on time and memory. It fails
the test where the command prints a traceback, takes longer than ten seconds, ends with another status than 0 or 2 (or
1, by which ``status --verify`` tells of a gap), changes what had been written although it refuses or only reads, or
goes on from a damaged checkpoint to other weights than the undisturbed run.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from fedmef_dist.base.regular import is_regular
from fedmef_dist.cli import main as command_line
from fedmef_dist.config import load_config
from fedmef_dist.report import compare
from fedmef_dist.runs import checkpoint_files
from fedmef_dist.session import session

SECONDS = 10.0
MEMORY = 6 << 30
_OUTPUT = "output.txt"
CONFIG = {
    "name": "fuzz",
    "seed": 3,
    "data": {"dataset": "digits", "root": "data", "partition": {"scheme": "dirichlet", "alpha": 0.5, "min_samples": 5}},
    "model": {"name": "cnn", "width": 0.25, "hidden": 8, "norm": "auto", "stem": "cifar"},
    "federation": {"clients": 8, "clients_per_round": 2, "rounds": 3, "local_epochs": 1, "batch_size": 64},
    "optimizer": {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.0, "schedule": "exponential", "decay": 0.99},
    "method": {"name": "fedmef", "density": 0.5, "adjust_every": 2, "adjust_until": 8, "adjust_rate": 0.4},
    "sap": {"prune_ratio": 0.5},
    "runtime": {"device": "cpu", "backend": "auto", "threads": 1, "timeout": 60.0},
    "evaluation": {"every": 2, "batch_size": 512},
    "checkpoint": {"every": 1, "keep": 2},
    "tracking": {"console": False, "wandb": {"mode": "disabled", "project": "x", "tags": ["a"]}},
}
# What keeps an accepted input small and off the network.
BOUNDS = [
    *("federation.rounds=1", "federation.local_epochs=1", "model.name=cnn"),
    *("data.download=false", "tracking.wandb.mode=disabled"),
]
NASTY = [
    *(0, -1, 1, 2, 3, 7, 0.5, 1.5, 2**31, 2**63, 10**30, 1e308, -1e308, 1e-300, float("nan"), float("inf")),
    *("", "x", "1", "\0", "\U0001f98a", "../../x", "~", "none", "mean", None, True, False, [], {}, [1], {"a": 1}),
]
SNIPPETS = [
    *(b"&a [*a]", b"*a", b"<<: {a: 1}", b"!!python/object/apply:os.system ['touch pwned']", b"%YAML 1.1\n"),
    *(b"---\n", b"\xff\xfe", b"[" * 3000, b"1e999", b".nan", b"0x", b"? ", b"|\n", b"- ", b": "),
    *(bytes([code]) for code in b"\0\t\r{}#'"),
]


@dataclass
class Outcome:
    """How one command ended."""

    status: int
    seconds: float
    output: str


def command(arguments: list[str], folder: Path) -> Outcome:
    """``fedmef-dist`` in a forked process; killed after ten seconds."""
    log = folder / _OUTPUT
    log.unlink(missing_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(arguments, folder, log)
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() - began < SECONDS:
        time.sleep(0.005)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)
    text = log.read_text(errors="replace") if log.exists() else ""
    return Outcome(os.waitstatus_to_exitcode(ended[1]), time.monotonic() - began, text)


def _become(arguments: list[str], folder: Path, log: Path) -> None:
    status = 99
    try:
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        torch.set_num_threads(1)
        sys.argv = ["fedmef-dist", *arguments]
        command_line()
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def mutate_bytes(draw: random.Random, data: bytes) -> bytes:
    """One to four small changes, or one large one."""
    kind = draw.choice(
        ["digit", "digit", "flip", "flip", "cut", "drop", "repeat", "insert", "insert", "noise", "empty"]
    )
    if kind == "empty":
        return b""
    if kind == "cut":
        return data[: draw.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(changed) + 1)
        length = draw.randint(1, 40)
        digits = [place for place, code in enumerate(changed) if chr(code).isdigit()] if kind == "digit" else []
        if digits:
            changed[draw.choice(digits)] = draw.choice(b"0123456789.-e")
        elif kind == "flip" and place < len(changed):
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == "drop":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length] * draw.randint(1, 3)
        elif kind == "insert":
            changed[place:place] = draw.choice(SNIPPETS)
        elif kind == "noise":
            changed[place : place + length] = draw.randbytes(length)
    return bytes(changed)


def mutate_tree(draw: random.Random, tree: object) -> object:
    """Another value, a missing key or an unknown one, somewhere in a tree of plain values."""
    tree = json.loads(json.dumps(tree))
    node, path = tree, [tree]
    while isinstance(node, dict | list) and node:
        key = draw.choice(sorted(node)) if isinstance(node, dict) else draw.randrange(len(node))
        path += [key, node]
        node = node[key]
        if draw.random() < 0.2:
            break
    if len(path) < 3:
        return draw.choice(NASTY)
    key, parent = path[-2:]
    match draw.choice(["set", "set", "set", "set", "delete", "add"]):
        case "set":
            parent[key] = draw.choice([near(draw, parent[key]), draw.choice(NASTY)])
        case "delete":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent[draw.choice(["", "x", f"{key}s", "round"])] = draw.choice(NASTY)
    return tree


def near(draw: random.Random, value: object) -> object:
    """A value of the same kind that may well be allowed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return draw.choice([True, False, "auto", "iid", "fedavg", "uniform", "batch", "cosine", value])
    return draw.choice([value + 1, value * 2, value * 10, type(value)(value / 2), -value, float(value), int(value)])


class Bench:
    """A folder with a finished part of a run and small data sets, and the fuzzers over copies of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.template = folder / "template"
        self.template.mkdir()
        (self.template / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        write_data(self.template / "data")
        # What is compiled or imported at its first use is then there for all forked processes.
        session.run(load_config(self.template / "config.yaml"), folder / "first")
        with contextlib.redirect_stdout(io.StringIO()):
            compare([folder / "first"])
        self.arguments = ["run", "config.yaml", "--run-dir", "run"]
        outcome = command([*self.arguments, "federation.rounds=4"], self.template)
        assert outcome.status == 0, outcome.output
        self.digest = json.loads((self.template / "run" / "summary.json").read_text())["model/digest"]
        shutil.rmtree(self.template / "run")
        assert command(self.arguments, self.template).status == 0
        shutil.copytree(self.template / "run", self.template / "other")

    def config(self, draw: random.Random, work: Path) -> list[str]:
        """A changed configuration, from the file or the command line."""
        shutil.rmtree(work / "run")
        path = work / "config.yaml"
        extra = list(BOUNDS)
        match draw.choice(["text", "values", "override"]):
            case "text":
                path.write_bytes(mutate_bytes(draw, path.read_bytes()))
            case "values":
                path.write_text(yaml.safe_dump(mutate_tree(draw, CONFIG), sort_keys=False))
            case "override":
                section = draw.choice([key for key in CONFIG if isinstance(CONFIG[key], dict)])
                key = draw.choice(sorted(CONFIG[section]))
                value = json.dumps(draw.choice([near(draw, CONFIG[section][key]), draw.choice(NASTY)])).encode()
                value = draw.choice([value, mutate_bytes(draw, value)])
                extra.append(f"{section}.{key}={value.decode('utf-8', 'replace')}".replace("\0", ""))
        return [*self.arguments, *sorted(extra, key=BOUNDS.__contains__)]

    def run_directory(self, draw: random.Random, work: Path) -> list[str]:
        """A damaged file of a run, or a checkpoint that a stranger has changed and signed."""
        files = sorted(path for path in (work / "run").rglob("*") if path.is_file() and path.suffix != ".log")
        if draw.random() < 0.5:
            path = draw.choice(files)
            if draw.random() < 0.1:
                path.unlink()
            else:
                path.write_bytes(mutate_bytes(draw, path.read_bytes()))
        else:
            change_checkpoint(draw, max((work / "run" / "checkpoints").iterdir()))
        return [*self.arguments, "federation.rounds=4"]

    def data(self, draw: random.Random, work: Path) -> list[str]:
        """A damaged file of a data set."""
        shutil.rmtree(work / "run")
        dataset = draw.choice(["cifar10", "fashion_mnist"])
        path = draw.choice(sorted((work / "data" / FOLDERS[dataset]).iterdir()))
        path.write_bytes(mutate_bytes(draw, path.read_bytes()))
        return [
            *self.arguments,
            *BOUNDS,
            f"data.dataset={dataset}",
            "data.partition.scheme=iid",
            "federation.clients=2",
        ]

    def reading(self, draw: random.Random, work: Path) -> list[str]:
        """A run directory in which somebody has laid what no run writes, for the commands that only read."""
        disturb(draw, work / "run")
        return draw.choice(READERS)

    def judge(self, kind: str, seed: int) -> tuple[str, str]:
        """One input: ``accepted``, ``refused``, or ``failed`` and why. What takes too long is tried once more."""
        verdict, why, slow = self._try(kind, seed)
        return self._try(kind, seed)[:2] if slow else (verdict, why)

    def _try(self, kind: str, seed: int) -> tuple[str, str, bool]:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.template, work)
        draw = random.Random(f"{kind} {seed}")
        arguments = getattr(self, kind)(draw, work)
        before = content(work)
        outcome = command(arguments, work)
        if outcome.status == 1 and "--verify" in arguments:
            outcome.status = 2
        verdict, why = self._verdict(kind, outcome, before, work)
        report = why and f"{kind} {seed}: {why}\n{' '.join(arguments)}\n{outcome.output[-3000:]}"
        return verdict, report, outcome.seconds >= SECONDS

    def _verdict(self, kind: str, outcome: Outcome, before: dict[str, str], work: Path) -> tuple[str, str]:
        if outcome.seconds >= SECONDS:
            return "failed", f"took more than {SECONDS:g} s"
        if "Traceback" in outcome.output or outcome.status not in (0, 2) or (work / "pwned").exists():
            return "failed", f"status {outcome.status}"
        if outcome.status == 2 or kind == "reading":
            after = content(work)
            changed = [name for name in before if after.get(name) != before[name]]
            if changed:
                return "failed", f"refused, but changed {changed}"
            return "refused" if outcome.status == 2 else "accepted", ""
        if kind == "run_directory":
            digest = json.loads((work / "run" / "summary.json").read_text())["model/digest"]
            if digest != self.digest:
                return "failed", "went on to other weights"
        return "accepted", ""


READERS = [
    ["compare", "run", "--out", "report"],
    ["compare", "run", "other", "--out", "report"],
    ["status", "run"],
    ["status", "run", "--verify"],
    ["status", "run", "other", "--json", "--verify"],
]


def disturb(draw: random.Random, run_dir: Path) -> None:
    """Changes one file of a run, or puts something else in its place."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log")
    path = draw.choice([*files, *(file for file in files if file.parent == run_dir)])
    match draw.choice(
        ["bytes", "bytes", "tree", "tree", "tree", "line", "special", "special", "endless", "checkpoint"]
    ):
        case "tree" if path.suffix in (".yaml", ".json"):
            tree = mutate_tree(draw, yaml.safe_load(path.read_text()) or {})
            path.write_text(yaml.safe_dump(tree) if path.suffix == ".yaml" else json.dumps(tree))
        case "line":
            path = run_dir / "metrics.jsonl"
            lines = path.read_text().splitlines() if path.is_file() else ["{}"]
            place = draw.randrange(len(lines))
            lines[place] = json.dumps(mutate_tree(draw, json.loads(lines[place])))
            path.write_text("\n".join(draw.choice([lines, lines * 2, lines[::-1], lines[1:]])) + "\n")
        case "special":
            replace_by(draw, path)
        case "endless":
            path.write_bytes(draw.choice(ENDLESS))
            os.truncate(path, draw.choice([path.stat().st_size, path.stat().st_size, 1 << 40]))
        case "checkpoint":
            (run_dir / "checkpoints" / draw.choice(["round-999999", "round-", "round-1", "round-٣", "x"])).mkdir()
        case _:
            path.write_bytes(mutate_bytes(draw, path.read_bytes()))


def replace_by(draw: random.Random, path: Path) -> None:
    """A file that is none: a FIFO, a device, a directory, a link to nowhere or back."""
    path.unlink()
    match draw.choice(["fifo", "zero", "directory", "nowhere", "loop", "missing", "other"]):
        case "fifo":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case "nowhere":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "other":
            path.symlink_to(Path("../other") / path.name)


ALIASES = b"".join(b"%c: &%c [*%c, *%c]\n" % (code + 1, code + 1, code, code) for code in range(97, 120))
ENDLESS = [
    *(b"[" * 200_000, b'{"a": ' * 200_000, b"- " * 100_000, b'{"rounds": 1' + b"0" * 400 + b"}"),
    *(b"a: 1e999", b"\xff" * 9999, b"a: &a [1, 1]\n" + ALIASES, b"\n" * 50_000),
]


def change_checkpoint(draw: random.Random, directory: Path) -> None:
    """Changes a value or a tensor, and gives the files a valid digest."""
    from safetensors.torch import load, save

    data, state = (directory / "state.safetensors").read_bytes(), json.loads((directory / "state.json").read_text())
    del state["sha256"], state["bytes"]
    if draw.random() < 0.6:
        state = mutate_tree(draw, state)
    elif draw.random() < 0.3:
        data = mutate_bytes(draw, data)
    else:
        tensors = load(data)
        change_tensor(draw, tensors)
        data = save(tensors)
    (directory / "state.safetensors").write_bytes(data)
    if isinstance(state, dict):
        state = checkpoint_files.seal(data, state)
    (directory / "state.json").write_text(json.dumps(state))


def change_tensor(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    """Another value, type, shape or name."""
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    match draw.choice(["value", "type", "shape", "name", "missing", "more", "extreme"]):
        case "value":
            tensor.view(torch.uint8)[draw.randrange(tensor.nbytes)] ^= 1 << draw.randrange(8)
        case "type":
            tensors[name] = tensor.to(draw.choice([torch.float64, torch.int8, torch.bool, torch.bfloat16]))
        case "shape":
            tensors[name] = draw.choice([tensor[:-1], tensor[None], torch.cat([tensor, tensor]), tensor[:0]]).clone()
        case "name":
            tensors[name + "s"] = tensors.pop(name)
        case "missing":
            del tensors[name]
        case "more":
            tensors["method/x"] = torch.zeros(3)
        case "extreme":
            lowest, highest = (torch.finfo if tensor.is_floating_point() else torch.iinfo)(tensor.dtype).min, 1
            tensor[draw.randrange(len(tensor))] = draw.choice([lowest, highest])


FOLDERS = {"cifar10": "cifar-10-batches-bin", "fashion_mnist": "fashion_mnist"}


def write_data(root: Path) -> None:
    """A few random images in each of the formats."""
    numbers = np.random.Generator(np.random.Philox(0))
    cifar, fashion = (root / folder for folder in FOLDERS.values())
    for folder in (cifar, fashion):
        folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = numbers.integers(0, 256, (6, 3073), dtype=np.uint8)
        records[:, 0] %= 10
        (cifar / name).write_bytes(records.tobytes())
    for part, amount in (("train", 30), ("t10k", 6)):
        images, labels = numbers.integers(0, 256, (amount, 28, 28)), numbers.integers(0, 10, amount)
        (fashion / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), mtime=0))
        (fashion / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def idx(values: np.ndarray) -> bytes:
    """The idx format: a head, big-endian sizes, bytes."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def content(folder: Path) -> dict[str, str]:
    """The sum of every file but the logs and what the command said."""
    # Links and special files are not read: they would not end.
    files = [path for path in folder.rglob("*") if is_regular(path) and path.suffix != ".log" and path.name != _OUTPUT]
    files = [path for path in files if path.stat().st_size < 1 << 30]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


KINDS = ("config", "run_directory", "data", "reading")


def fuzz(inputs: int, seed: int, folder: Path, kinds: Sequence[str] = KINDS) -> tuple[Counter[str], list[str]]:
    """How often each kind was accepted, refused or failed, and the failures."""
    bench, counts, failures = Bench(folder), Counter[str](), []
    for number in range(inputs):
        kind = kinds[number % len(kinds)]
        verdict, why = bench.judge(kind, seed * 1_000_000 + number)
        counts[f"{kind} {verdict}"] += 1
        failures += [why] if why else []
    return counts, failures


def main() -> None:
    """Prints the failures and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=510)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts, failures = fuzz(options.inputs, options.seed, Path(folder), options.kinds)
    print(*failures, sep="\n\n")
    print(*(f"{key}: {count}" for key, count in sorted(counts.items())), sep="\n")
    print(f"{options.inputs - len(failures)} of {options.inputs} inputs, {time.monotonic() - began:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
