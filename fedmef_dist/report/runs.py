"""Run directories as the report reads them: validated, and grouped where they differ only in the seed."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedmef_dist.errors import UserError

# Keys of a configuration that do not make an experiment another one.
_NOT_COMPARED = ("seed", "name", "tracking", "checkpoint")
_SEED = re.compile(r"[-_=/.]*(seed|s)?[-_=]*\d+$")


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of one experiment that differ only in the seed; ``label`` is what tables and legends call it."""

    label: str
    runs: Sequence[Run]

    @property
    def method(self) -> str:
        """The name of the method that all of them ran."""
        return str(self.runs[0].config["method"]["name"])

    def mean(self, key: str) -> float | None:
        """The mean over the seeds of a summary value; None where a run lacks it."""
        values = self._values(key)
        return None if values is None else float(np.mean(values))

    def deviation(self, key: str) -> float | None:
        """The sample standard deviation over the seeds; None for a single run, or where a run lacks the value."""
        values = self._values(key)
        return None if values is None or len(values) < 2 else float(np.std(values, ddof=1))

    def _values(self, key: str) -> list[float] | None:
        values = [run.summary.get(key) for run in self.runs]
        return None if any(value is None for value in values) else [float(value) for value in values]  # type: ignore[arg-type]


def read_run(path: Path) -> Run:
    """The run in the directory ``path``; raises UserError where it is none, is unfinished or is damaged."""
    if not path.is_dir():
        raise UserError(f"there is no run directory {path}\nmake one with: fedmef-dist run CONFIG --run-dir {path}")
    config = _read(path / "config.yaml", yaml.safe_load)
    metrics = _read(path / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
    summary = _read(path / "summary.json", json.loads)
    _check(path / "config.yaml", isinstance(config, dict) and "name" in _section(config, "method"))
    _check(path / "metrics.jsonl", bool(metrics) and all(isinstance(m, dict) and "round" in m for m in metrics))
    _check(path / "summary.json", isinstance(summary, dict))
    return Run(path, config, metrics, summary)


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs as groups of seeds, in the order in which each first appears."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        experiment = {key: value for key, value in run.config.items() if key not in _NOT_COMPARED}
        groups.setdefault(json.dumps(experiment, sort_keys=True, default=str), []).append(run)
    labels = [_label(members, lambda run: run.path.resolve().name) for members in groups.values()]
    if len(set(labels)) < len(labels):
        labels = [_label(members, lambda run: str(run.path)) for members in groups.values()]
    return [Group(label, members) for label, members in zip(labels, groups.values(), strict=True)]


def _label(runs: Sequence[Run], name: Callable[[Run], str]) -> str:
    """The name of a single run; for several, the first one's without its seed: ``fedmef`` for fedmef-seed0."""
    names = [name(run) for run in runs]
    return names[0] if len(names) == 1 else _SEED.sub("", names[0]) or names[0]


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {path.name} in {path.parent}\n"
            "either it is no run directory or the run has not finished; run it again with --resume auto"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read\n{str(error).splitlines()[0]}\n{_MEND}") from error


def _check(path: Path, condition: bool) -> None:
    if not condition:
        raise UserError(f"{path} is not what a run writes\n{_MEND}")


_MEND = "leave this run out, or run it again with --resume never"
