"""Run directories as a run writes them, made by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedmef_dist.tracking.lines import head_of


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make_run(name, method, seed, accuracies, wire, ...): a finished run that evaluates every second round.

    ``settings`` are more sections of its configuration, ``logged`` more metrics of a round, the rest is its summary.
    """

    def make(
        name: str,
        method: str = "fedmef",
        seed: int = 0,
        accuracies: tuple[float, ...] = (0.5, 0.9),
        wire: float = 2e6,
        settings: dict | None = None,
        logged: dict[int, dict] | None = None,
        **summary,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True)
        config = {"name": name, "seed": seed, "method": {"name": method}, "federation": {"rounds": 2 * len(accuracies)}}
        for section, values in (settings or {}).items():
            config[section] = config.get(section, {}) | values
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        rounds = 2 * len(accuracies)
        lines: list[str] = []
        for number in range(1, rounds + 1):
            line = {"round": number, "wire/total_bytes": wire * number / rounds, "flops/total": 5e11 * number}
            line |= {"wire/up_bytes": 0.4 * wire / rounds, "wire/down_bytes": 0.6 * wire / rounds, "clients/trained": 5}
            if number % 2 == 0:
                line["eval/accuracy"] = accuracies[number // 2 - 1]
            line |= (logged or {}).get(number, {})
            lines.append(json.dumps(line) + "\n")
        (directory / "metrics.jsonl").write_text("".join(lines))
        values = {
            "rounds": rounds,
            **head_of([line.encode() for line in lines]).summary(),
            "eval/accuracy_last": accuracies[-1],
            "eval/accuracy_best": max(accuracies),
            "wire/total_bytes": wire,
            "reference/wire_bytes": 1e7,
            "memory/activation_bytes": 3_000_000,
            "reference/activation_bytes": 1.2e7,
            "memory/device_bytes": 2_500_000,
            "memory/peak_bytes": 45_600_000,
            "reference/peak_bytes": 91_200_000,
            "sparsity/density": 0.2,
            "flops/total": 5e11 * rounds,
            "time/total": 90.0,
            **summary,
        }
        (directory / "summary.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
        return directory

    return make
