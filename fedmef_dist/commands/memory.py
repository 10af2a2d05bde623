"""The command ``memory``: measures training steps, plans them for a budget, and prints what was found."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import open_group
from fedmef_dist.config import Config, load_config
from fedmef_dist.data.shapes import shape_of
from fedmef_dist.devices.settings import parse_size
from fedmef_dist.report.front import plan_report, save_front
from fedmef_dist.report.memory import report, save_bars
from fedmef_dist.simulation.footprint import as_json, measure, own_setting
from fedmef_dist.simulation.planning import Planned, plan_memory


def memory_command(
    path: Path, overrides: list[str], as_objects: bool, out: Path | None, steps: int, budget: str | None = None
) -> None:
    """Compares settings, or with a budget plans the configuration's own. Raises UserError."""
    config = load_config(path, [*overrides, "runtime.backend=auto"])  # one process measures, and talks to none
    with open_group(detect(os.environ), config.runtime) as group:
        if group.rank:
            return
        if budget is None:
            _compare(config, group.device, as_objects, out, steps)
        else:
            _plan(config, group.device, as_objects, out, parse_size(budget, "--budget"))


def _compare(config: Config, device: Any, as_objects: bool, out: Path | None, steps: int) -> None:
    footprints = measure(config, device, steps)
    if as_objects:
        print(json.dumps([as_json(config, footprint, footprints[0]) for footprint in footprints], indent=2))
    else:
        print(report(footprints, own_setting(config)))
    if out is not None:
        save_bars(footprints, out)


def _plan(config: Config, device: Any, as_objects: bool, out: Path | None, budget: int) -> None:
    found = plan_memory(config, shape_of(config.data), budget)
    print(json.dumps(plan_object(found, budget), indent=2) if as_objects else plan_report(found, budget))
    if out is not None:
        save_front(found.planner, measure(config, device, 1, every_round=True), out)


def plan_object(found: Planned, budget: int) -> dict[str, Any]:
    """A plan and the front for programs; bytes."""
    planner, candidate = found.planner, found.candidate
    return {
        "budget_bytes": budget,
        "predicted_peak_bytes": candidate.peak,
        "peak_bytes": found.measured,
        "gradient": "exact" if found.plan.is_exact else "pruned",
        "recompute": sorted(found.plan.recomputed),
        "layers": {name: "keep" if ratio is None else ratio or "pack" for name, ratio in found.plan.layers.items()},
        "front": [asdict(one) for one in planner.front()],
    }
