"""Mutated data of a user's own: each is refused with status 2, or read, and whatever was passed over is said.

    python tests/fuzz_data.py --inputs 200 --seed 0

An equal share of the inputs each: folders of images, LEAF's JSON, texts, arrays and pickles. Every input goes through
the whole command ``data`` in a forked process with limits on time and memory. It fails the test where the command
prints a traceback, takes longer than ten seconds, ends with another status than 0 or 2, changes a file, or counts other
samples than before without a word on what it passed over.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import data_files
import fuzz
import numpy as np
import yaml
from safetensors.numpy import save_file

from fedmef_dist.commands.data import data_command

KINDS = ("folder", "leaf", "text", "arrays")
CONFIG = {
    "name": "look",
    "data": {
        "root": "data",
        "folder": {"image_size": 12},
        "text": {"context": 8},
        "partition": {"scheme": "iid", "min_samples": 1},
    },
    "federation": {"clients": 2, "clients_per_round": 1},
}
# Left by systems and editors, or by somebody in a hurry: none of it is a sample, and each is to be told or refused.
LEFTOVERS = (
    *(".hidden.png", "._0.json", ".ipynb_checkpoints/0.png", "@eaDir/0.png", "__MACOSX/0.png", "Thumbs.db"),
    *("lost+found/x", "notes.txt", "a link", "a pipe", "a loop"),
)


def write_data(root: Path) -> None:
    """A little of each format."""
    data_files.folder(root, count=6)
    data_files.femnist(root, count=3)
    data_files.shakespeare(root)
    data_files.tinystories(root)
    parts = data_files.arrays(root, count=12)
    (root / "npy").mkdir()
    for name, values in parts.items():
        np.save(root / "npy" / f"{name}.npy", values)
    numbers = {name: values for name, values in parts.items() if not name.endswith("clients")}
    save_file(numbers, root / "own.safetensors")
    np.savez(root / "tokens.npz", tokens=np.arange(80).reshape(10, 8))
    data_files.cifar10_python(root, count=2)


SETS = {
    "folder": [("folder", "images", ())],
    "leaf": [("femnist", "femnist", ())],
    "text": [("shakespeare", "shakespeare", ()), ("tinystories", "tinystories.txt", ())],
    "arrays": [
        ("arrays", "arrays.npz", ()),
        ("arrays", "npy", ("data.arrays.path=npy",)),
        ("arrays", "own.safetensors", ("data.arrays.path=own.safetensors",)),
        ("arrays", "tokens.npz", ("data.arrays.path=tokens.npz",)),
        ("cifar10", "cifar-10-batches-py", ()),
    ],
}


class Bench:
    """Small data sets, and what the command says of each as it was written."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.template = folder, folder / "template"
        self.template.mkdir()
        (self.template / "x.yaml").write_text(yaml.safe_dump(CONFIG))
        write_data(self.template / "data")
        # What is imported at its first use is then there for all forked processes.
        with contextlib.redirect_stdout(io.StringIO()):
            data_command(self.template / "x.yaml", [f"data.root={self.template}/data", "data.dataset=folder"], folder)
        self.samples: dict[tuple[str, str], str] = {}
        for kind in KINDS:
            for dataset, place, keys in SETS[kind]:
                outcome = fuzz.command(arguments(dataset, keys), self.template)
                assert outcome.status == 0, outcome.output
                self.samples[dataset, place] = samples_of(outcome.output)
        shutil.rmtree(self.template / "runs")
        shutil.rmtree(self.template / "data/.fedmef_dist")

    def judge(self, kind: str, seed: int) -> tuple[str, str]:
        """One input: ``accepted``, ``refused``, or ``failed`` and why."""
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.template, work)
        draw = random.Random(f"{kind} {seed}")
        dataset, place, keys = draw.choice(SETS[kind])
        counts_alike, what = mutate(draw, work / "data" / place)
        before = content(work / "data")
        outcome = fuzz.command(arguments(dataset, keys), work)
        why = self._wrong(outcome, before, work, counts_alike and kind != "text", (dataset, place))
        verdict = "failed" if why else ("accepted" if outcome.status == 0 else "refused")
        return verdict, why and f"{kind} {seed}: {what} in {place}: {why}\n{outcome.output[-3000:]}"

    def _wrong(
        self, outcome: fuzz.Outcome, before: dict[str, str], work: Path, counts_alike: bool, key: tuple[str, str]
    ) -> str:
        if outcome.seconds >= fuzz.SECONDS:
            return f"took more than {fuzz.SECONDS:g} s"
        if "Traceback" in outcome.output or outcome.status not in (0, 2):
            return f"status {outcome.status}"
        after = content(work / "data")
        if any(after.get(name) != before[name] for name in before):
            return "changed a file"
        silent = re.search(r"^passed over +nothing$", outcome.output, re.MULTILINE)
        if outcome.status == 0 and counts_alike and silent and samples_of(outcome.output) != self.samples[key]:
            return f"other samples than {self.samples[key]}, and no word"
        return ""


def arguments(dataset: str, keys: tuple[str, ...]) -> list[str]:
    """The command line."""
    return ["data", "x.yaml", f"data.dataset={dataset}", *keys]


def samples_of(output: str) -> str:
    """The line that counts them."""
    found = re.search(r"^samples +(.*)$", output, re.MULTILINE)
    return found.group(1) if found else ""


def content(folder: Path) -> dict[str, str]:
    """The sum of every regular file but the cache's."""
    return {name: sum_ for name, sum_ in fuzz.content(folder).items() if not name.startswith(".fedmef_dist")}


def mutate(draw: random.Random, place: Path) -> tuple[bool, str]:
    """Changes a data set; gives whether it still has as many samples as before, and what was done."""
    files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
    path = draw.choice(files)
    kind = draw.choice(["bytes", "bytes", "bytes", "leftover", "leftover", "remove", "copy", "empty", "folder"])
    match kind:
        case "bytes":
            path.write_bytes(fuzz.mutate_bytes(draw, path.read_bytes()))
        case "leftover":
            name = draw.choice(LEFTOVERS)
            leave(path.parent, name)
            return True, name
        case "remove":
            path.unlink()
        case "copy":
            shutil.copy(path, path.with_name(f"copy {path.name}"))
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.unlink()
            path.mkdir()
    return kind in ("bytes", "empty"), f"{kind} {path.name}"


def leave(folder: Path, name: str) -> None:
    """Puts one of the leftovers into a folder."""
    target = folder / name.replace("a ", "a-")
    target.parent.mkdir(exist_ok=True)
    match name:
        case "a link":
            target.with_suffix(".png").symlink_to("nowhere")
        case "a pipe":
            os.mkfifo(target.with_suffix(".png"))
        case "a loop":
            target.symlink_to(".")
        case _:
            target.write_bytes(b"\0\5\x16\7")


def run(inputs: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """How often each kind was accepted, refused or failed, and the failures."""
    bench, counts, failures = Bench(folder), Counter[str](), []
    for number in range(inputs):
        kind = KINDS[number % len(KINDS)]
        verdict, why = bench.judge(kind, seed * 1_000_000 + number)
        counts[f"{kind} {verdict}"] += 1
        failures += [why] if why else []
    return counts, failures


def main() -> None:
    """Prints the failures and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/home"
        counts, failures = run(options.inputs, options.seed, Path(folder))
    print(*failures, sep="\n\n")
    print(*(f"{key}: {count}" for key, count in sorted(counts.items())), sep="\n")
    print(f"{options.inputs - len(failures)} of {options.inputs} inputs, {time.monotonic() - began:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
