"""Accuracy against the prune ratio: FedMef on Fashion-MNIST at several ratios and, beside it, batch normalisation.

    python benchmarks/prune_ratio.py --out runs/prune_ratio

Each cell is one run of ``fedmef_dist`` on two ranks of one thread each. A cell that has finished is not run again, one
that was stopped goes on from its checkpoint, so the command can be repeated. It ends with a Markdown table: mean and
sample standard deviation of the last accuracy over the seeds, and what dropping activations costs against p = 0, seed
by seed, with its standard error.

The rows with batch size 1 show that NSConv trains where a batch has a single image, on which batch normalisation has
nothing to normalise over but the image's own pixels. They take few rounds, since a round makes 32 times the steps.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fashion_mnist_fedmef.yaml"
RATIOS = (0.0, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Cell:
    """One row of the table: what is changed in the configuration."""

    label: str
    overrides: tuple[str, ...]
    rounds: int
    is_ratio: bool = True  # to be compared with p = 0


def cells(rounds: int, short_rounds: int) -> list[Cell]:
    """Prune ratios, then batch size 1 with either normalisation."""
    common = ("model.name=resnet8", "method.density=0.1", "tracking.wandb.mode=disabled", "evaluation.every=5")
    ratios = [Cell(f"p = {ratio:g}", (*common, f"sap.prune_ratio={ratio}"), rounds) for ratio in RATIOS]
    single = [
        Cell(
            f"batch size 1, {norm}, p = 0.5",
            (*common, "sap.prune_ratio=0.5", "federation.batch_size=1", "optimizer.lr=0.005", f"model.norm={norm}"),
            short_rounds,
            is_ratio=False,
        )
        for norm in ("nsconv", "batch")
    ]
    return ratios + single


def run_dir(out: Path, cell: Cell, seed: int) -> Path:
    """Where a cell's run lies; the rounds are in its name, so that a longer table does not take a shorter one's."""
    name = cell.label.replace(" = ", "").replace(",", "").replace(" ", "-").replace(".", "")
    return out / f"{name}-rounds{cell.rounds}-seed{seed}"


def accuracy(directory: Path) -> float | None:
    """The last accuracy of a finished run."""
    summary = directory / "summary.json"
    return json.loads(summary.read_text())["eval/accuracy_last"] if summary.exists() else None


def train(cell: Cell, seed: int, directory: Path) -> None:
    """Runs one cell on two ranks; its own messages go to stderr."""
    until = max(cell.rounds * 3 // 4, 1)
    settings = (f"federation.rounds={cell.rounds}", f"method.adjust_until={until}", f"seed={seed}")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "fedmef_dist", "run", str(CONFIG), *cell.overrides, *settings, "--run-dir", str(directory)]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})


def rows(table: list[Cell], out: Path, seeds: list[int]) -> Iterator[str]:
    """Lines of the Markdown table; a cell that has not finished stands as a dash."""
    yield "| cell | rounds | seeds | accuracy (%), mean ± sd | against p = 0, points, mean ± standard error |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    dense = {seed: accuracy(run_dir(out, table[0], seed)) for seed in seeds}
    for cell in table:
        found = {seed: value for seed in seeds if (value := accuracy(run_dir(out, cell, seed))) is not None}
        pairs = [100 * (found[seed] - dense[seed]) for seed in found if dense[seed] is not None]
        compared = pairs if cell.is_ratio and cell is not table[0] else []
        shown = spread([100 * value for value in found.values()], error=False)
        yield f"| {cell.label} | {cell.rounds} | {len(found)} | {shown} | {spread(compared, error=True)} |"


def spread(values: list[float], error: bool) -> str:
    """Mean and sample deviation, or the standard error of the mean."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.2f}"
    deviation = float(np.std(values, ddof=1)) / (len(values) ** 0.5 if error else 1)
    return f"{np.mean(values):.2f} ± {deviation:.2f}"


def main() -> None:
    """Reads the command line, runs what is missing, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/prune_ratio"), help="directory of the runs")
    parser.add_argument("--rounds", type=int, default=60, help="rounds of each run")
    parser.add_argument("--single-rounds", type=int, default=3, help="rounds of the runs with batch size 1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of each cell")
    parser.add_argument("--table-only", action="store_true", help="print what there is, run nothing")
    options = parser.parse_args()
    table = cells(options.rounds, options.single_rounds)
    for seed in options.seeds:
        for cell in table:
            directory = run_dir(options.out, cell, seed)
            if not options.table_only and accuracy(directory) is None:
                train(cell, seed, directory)
    print("\n".join(rows(table, options.out, options.seeds)))


if __name__ == "__main__":
    main()
