import random
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest


@pytest.mark.timeout(400)
def test_mutated_inputs_are_refused_or_run_right():
    """In a process of its own, whose forks inherit nothing of this one. All 510 inputs: `python tests/fuzz.py`."""
    command = [sys.executable, str(Path(fuzz.__file__)), "--inputs", "36", "--seed", "13"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout
    counts = dict(line.split(": ") for line in done.stdout.splitlines() if line.count(": ") == 1)
    # A fuzzer whose inputs are all refused, or all accepted, tries nothing.
    assert counts.keys() == {f"{kind} {verdict}" for kind in fuzz.KINDS for verdict in ("accepted", "refused")}


def test_mutations_change_something_and_depend_on_the_seed_alone():
    text = b"seed: 3\nmodel: {name: cnn}\n" * 5
    changed = [fuzz.mutate_bytes(random.Random(seed), text) for seed in range(200)]
    assert changed == [fuzz.mutate_bytes(random.Random(seed), text) for seed in range(200)]
    assert sum(data != text for data in changed) > 180
    trees = [repr(fuzz.mutate_tree(random.Random(seed), fuzz.CONFIG)) for seed in range(200)]
    assert sum(tree != repr(fuzz.CONFIG) for tree in trees) > 180


@pytest.mark.parametrize(
    ("status", "output", "seconds", "verdict"),
    [
        (2, "wrong", 0.1, "refused"),
        (0, "done", 0.1, "accepted"),
        (1, "fault", 0.1, "failed"),
        (0, "Traceback (most recent call last):", 0.1, "failed"),
        (-9, "", fuzz.SECONDS, "failed"),
    ],
)
def test_how_a_command_ended_is_judged(tmp_path, status, output, seconds, verdict):
    bench = object.__new__(fuzz.Bench)
    assert bench._verdict("config", fuzz.Outcome(status, seconds, output), {}, tmp_path)[0] == verdict


def test_a_refusal_that_changes_a_file_fails(tmp_path):
    (tmp_path / "config.yaml").write_text("a")
    before = fuzz.content(tmp_path)
    (tmp_path / "config.yaml").write_text("b")
    bench = object.__new__(fuzz.Bench)
    verdict = bench._verdict("config", fuzz.Outcome(2, 0.1, "wrong"), before, tmp_path)
    assert verdict == ("failed", "refused, but changed ['config.yaml']")
