"""The runs of a study and the probes of its network: started unless they lie there finished."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from fedmef_dist.base.atomic import write_json
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import differing_keys, read_tree_file
from fedmef_dist.cluster.ending import INTERRUPTED
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.config import load_config, to_tree
from fedmef_dist.scaling.launch_site import LaunchSite
from fedmef_dist.scaling.points import Point
from fedmef_dist.scaling.probe import Probe, read_probes

POINTS = "points"  # folder of the runs
PROCESS_FILE = "process.json"
_TAIL = 12


def measure(
    place: LaunchSite, config: Path, overrides: Sequence[str], point: Point, rounds: int, repeat: int, out: Path
) -> Path:
    """The run directory of one repetition of a point; runs it unless it lies there finished.

    Raises:
        UserError: the configuration does not fit, or the directory holds another study's run.
        SystemExit: the run failed, which is shown, or a signal stopped it.
    """
    changes = [*overrides, *point.overrides(rounds)]
    run_dir = out / POINTS / f"{point.name}_{repeat}"
    if (run_dir / PROCESS_FILE).is_file():
        _refuse_another(run_dir, to_tree(load_config(config, changes)))
        return run_dir
    shutil.rmtree(run_dir, ignore_errors=True)  # half a run has half the times
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    log = run_dir.with_suffix(".log")
    start = time.perf_counter()
    status = place.run(["run", str(config), *changes, "--run-dir", str(run_dir)], point.ranks, log)
    if status:
        give_up(status, point.name, log)
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
                give_up(status, file.stem, log)
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


def give_up(status: int, name: str, log: Path) -> NoReturn:
    """Ends with the status of a run that failed, and shows the last lines of its log; raises SystemExit."""
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
