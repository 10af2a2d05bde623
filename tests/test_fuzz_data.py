import random
import shutil
import subprocess
import sys
from pathlib import Path

import fuzz
import fuzz_data
import pytest


@pytest.mark.timeout(400)
def test_mutated_data_are_refused_or_read_right():
    """In a process of its own, whose forks inherit nothing of this one. All 200 inputs: `python tests/fuzz_data.py`."""
    command = [sys.executable, str(Path(fuzz_data.__file__)), "--inputs", "24", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if line.count(": ") == 1)
    assert counts.keys() == {f"{kind} {verdict}" for kind in fuzz_data.KINDS for verdict in ("accepted", "refused")}


FINE = "samples  4 for training\npassed over  nothing\n"


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (fuzz.Outcome(0, 0.1, FINE), ""),
        (fuzz.Outcome(2, 0.1, "a data file is damaged"), ""),
        (fuzz.Outcome(1, 0.1, "fault"), "status 1"),
        (fuzz.Outcome(0, 0.1, f"Traceback (most recent call last):\n{FINE}"), "status 0"),
        (fuzz.Outcome(-9, fuzz.SECONDS, ""), "took more than 10 s"),
        (fuzz.Outcome(0, 0.1, FINE.replace("4", "3")), "other samples than 4 for training, and no word"),
        (fuzz.Outcome(0, 0.1, FINE.replace("4", "3").replace("nothing", "1 hidden files")), ""),
    ],
)
def test_how_a_command_ended_is_judged(tmp_path, outcome, wrong):
    bench = object.__new__(fuzz_data.Bench)
    bench.samples = {("folder", "images"): "4 for training"}
    (tmp_path / "data").mkdir()
    assert bench._wrong(outcome, {}, tmp_path, True, ("folder", "images")) == wrong


def test_a_changed_file_is_wrong(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x").write_text("a")
    before = fuzz_data.content(tmp_path / "data")
    (tmp_path / "data/x").write_text("b")
    wrong = object.__new__(fuzz_data.Bench)._wrong(fuzz.Outcome(2, 0.1, ""), before, tmp_path, True, ("a", "b"))
    assert wrong == "changed a file"


def test_mutations_depend_on_the_seed_alone_and_change_something(tmp_path):
    fuzz_data.write_data(tmp_path / "first")
    before = fuzz_data.content(tmp_path / "first")
    done = []
    for seed in (*range(30), *range(30)):
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        shutil.copytree(tmp_path / "first", tmp_path / "work")
        what = fuzz_data.mutate(random.Random(seed), tmp_path / "work" / "images")
        changed = fuzz_data.content(tmp_path / "work") != before or any(name in what[1] for name in fuzz_data.LEFTOVERS)
        done.append((what, changed))
    assert done[:30] == done[30:]
    assert sum(changed for _, changed in done) > 50
