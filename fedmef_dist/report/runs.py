"""Run directories as the report reads them, validated."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedmef_dist.base.errors import UserError

# Keys of a configuration that do not make an experiment another one.
_NOT_COMPARED = ("seed", "name", "tracking", "checkpoint")


@dataclass(frozen=True)
class Run:
    """One finished run."""

    path: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]

    @property
    def experiment(self) -> dict[str, Any]:
        """The configuration without the seed and what has no influence on the result."""
        return {key: value for key, value in self.config.items() if key not in _NOT_COMPARED}

    def value(self, key: str) -> float | None:
        """A value of the summary, else that of the first round that has it; None where none has."""
        lines = (self.summary, *self.metrics)
        return next((float(line[key]) for line in lines if line.get(key) is not None), None)

    def total(self, key: str) -> float | None:
        """The sum of a key over the rounds; None where no round has it."""
        values = [float(line[key]) for line in self.metrics if line.get(key) is not None]
        return sum(values) if values else None


def read_run(path: Path) -> Run:
    """The run in the directory ``path``; raises UserError where it is none, is unfinished or is damaged."""
    if not path.is_dir():
        raise UserError(
            f"there is no run directory {path}", mend=f"make one with: fedmef-dist run CONFIG --run-dir {path}"
        )
    config = _read(path / "config.yaml", yaml.safe_load)
    metrics = _read(path / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
    summary = _read(path / "summary.json", json.loads)
    _check(path / "config.yaml", isinstance(config, dict) and "name" in _section(config, "method"))
    _check(path / "metrics.jsonl", bool(metrics) and all(isinstance(m, dict) and "round" in m for m in metrics))
    _check(path / "summary.json", isinstance(summary, dict))
    return Run(path, config, metrics, summary)


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {path.name} in {path.parent}",
            mend="either it is no run directory or the run has not finished; run it again with --resume auto",
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read", where=f"{str(error).splitlines()[0]}", mend=_MEND) from error


def _check(path: Path, condition: bool) -> None:
    if not condition:
        raise UserError(f"{path} is not what a run writes", mend=_MEND)


_MEND = "leave this run out, or run it again with --resume never"
