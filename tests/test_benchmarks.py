"""The benchmarks start: they are not run in the suite, so that nothing else would notice when they no longer could."""

import importlib.util
import sys
from pathlib import Path

import pytest

from fedmef_dist.config import parse_config

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def loaded(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_says_how_to_use_it(path, monkeypatch, capsys):
    module = loaded(path, monkeypatch)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_workloads_of_a_round_are_valid(monkeypatch):
    module = loaded(BENCHMARKS / "round.py", monkeypatch)
    for name, workload in module.WORKLOADS.items():
        parse_config(module.COMMON | workload, name)
        parse_config(module.COMMON | workload | module.BESIDE.get(name, {}), name)
