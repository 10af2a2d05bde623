"""Starts the runs of a study: as processes of this machine, or with srun over an allocation."""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmef_dist.base.atomic import write_json
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import differing_keys, read_tree_file
from fedmef_dist.cluster.ending import INTERRUPTED
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.cluster.local_ranks import run_ranks, wait_for
from fedmef_dist.cluster.slurm import expand_tasks
from fedmef_dist.config import load_config, to_tree
from fedmef_dist.scaling.points import Point
from fedmef_dist.scaling.probe import Probe, read_probes

PROCESS_FILE = "process.json"
_TAIL = 12


@dataclass(frozen=True)
class LaunchSite:
    """Where the ranks run: ``tasks_per_node`` of an allocation, or None for this machine alone."""

    tasks_per_node: tuple[int, ...] | None

    def check(self, ranks: int) -> None:
        """Raises UserError where the allocation is too small for so many ranks."""
        if self.tasks_per_node is not None and ranks > sum(self.tasks_per_node):
            raise UserError(
                f"the allocation has {sum(self.tasks_per_node)} tasks, not {ranks}",
                where="--ranks",
                mend="ask for more nodes or tasks, or measure fewer ranks",
            )

    def probes(self, ranks: Sequence[int]) -> list[tuple[int, bool]]:
        """On how many ranks the network is measured, and whether each has a node of its own."""
        nodes = 1 if self.tasks_per_node is None else len(self.tasks_per_node)
        here = max(ranks) if self.tasks_per_node is None else self.tasks_per_node[0]
        inside = sorted({number for number in ranks if 1 < number <= here})
        spread = sorted({2, nodes} & set(range(2, nodes + 1)))
        return [*((number, False) for number in inside), *((number, True) for number in spread)]

    def local_ranks(self, ranks: int) -> int:
        """How many of the ranks share a node."""
        return ranks if self.tasks_per_node is None else min(ranks, self.tasks_per_node[0])

    def run(self, arguments: Sequence[str], ranks: int, log: Path, *, spread: bool = False) -> int:
        """Run ``fedmef-dist ARGUMENTS`` on so many ranks; returns the exit status. What they print goes to ``log``.

        ``spread`` puts each rank of an allocation on a node of its own.
        """
        with log.open("wb") as output:
            if self.tasks_per_node is None:
                return run_ranks(arguments, ranks, output)
            nodes = ranks if spread else -(-ranks // self.tasks_per_node[0])
            threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
            step = [f"--nodes={nodes}", f"--ntasks={ranks}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=0"]
            command = ["srun", *step, "--wait=30", sys.executable, "-m", "fedmef_dist", *arguments]
            return wait_for([(command, os.environ)], output)


def find_place() -> LaunchSite:
    """The machine itself, or the allocation whose batch script runs here. Raises UserError inside a launcher's rank."""
    environment = detect(os.environ)
    if environment.launcher != "single":
        raise UserError(
            f"scale starts its ranks itself, {environment.launcher} has started it",
            where="command line",
            mend="call it without a launcher; inside an allocation it uses srun",
        )
    tasks = os.environ.get("SLURM_TASKS_PER_NODE") if "SLURM_JOB_ID" in os.environ else None
    return LaunchSite(None if tasks is None else tuple(expand_tasks(tasks)))


def measure(
    place: LaunchSite, config: Path, overrides: Sequence[str], point: Point, rounds: int, repeat: int, out: Path
) -> Path:
    """The run directory of one repetition of a point; runs it unless it lies there finished.

    Raises:
        UserError: the configuration does not fit, or the directory holds another study's run.
        SystemExit: the run failed, which is shown, or a signal stopped it.
    """
    changes = [*overrides, *point.overrides(rounds)]
    run_dir = out / "points" / f"{point.name}_{repeat}"
    if (run_dir / PROCESS_FILE).is_file():
        _refuse_another(run_dir, to_tree(load_config(config, changes)))
        return run_dir
    shutil.rmtree(run_dir, ignore_errors=True)  # half a run has half the times
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".log")
    start = time.perf_counter()
    status = place.run(["run", str(config), *changes, "--run-dir", str(run_dir)], point.ranks, log)
    if status:
        _give_up(status, point.name, log)
    write_json(run_dir / PROCESS_FILE, {"seconds": time.perf_counter() - start})
    return run_dir


def measure_network(
    place: LaunchSite, config: Path, overrides: Sequence[str], ranks: Sequence[int], out: Path
) -> list[Probe]:
    """All-reduces on so many ranks of a node, and over an allocation's nodes with a rank each; those that lie there.

    Raises SystemExit where a probe failed, which is shown, or a signal stopped it.
    """
    found: list[Probe] = []
    out.mkdir(parents=True, exist_ok=True)
    for number, spread in place.probes(ranks):
        file = out / f"{'nodes' if spread else 'ranks'}-{number}.json"
        if not file.is_file():
            print(f"network: {number} {'nodes' if spread else 'ranks of a node'}", flush=True)
            log = file.with_suffix(".log")
            status = place.run(["probe", str(config), *overrides, "--out", str(file)], number, log, spread=spread)
            if status:
                _give_up(status, file.stem, log)
        found += read_probes(file)
    return found


def _refuse_another(run_dir: Path, wanted: dict[str, object]) -> None:
    keys = differing_keys(read_tree_file(run_dir / "config.yaml", "study's configuration"), wanted)
    if keys:
        raise UserError(
            f"the directory holds another study; different: {', '.join(keys[:8])}",
            where=str(run_dir),
            mend="choose another --out, or delete it",
        )


def _give_up(status: int, name: str, log: Path) -> None:
    if status in (STOPPED_EARLY, INTERRUPTED):
        raise SystemExit(status)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    print(
        f"the run {name} ended with exit status {status}; {log} ends with:",
        *map(printable, lines),
        sep="\n",
        file=sys.stderr,
    )
    raise SystemExit(2 if status == 2 else 1)
