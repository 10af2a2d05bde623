"""Thousands of disturbed runs, each drawn from a seed. More of them: `python tests/seeded_world.py --seeds 100000`."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import seeded_world
from seeded_disk import Disk
from seeded_scheduler import WrongError

from fedmef_dist.base import atomic
from fedmef_dist.runs import checkpoint, checkpoint_files, directory, owner
from fedmef_dist.sums.round_sum import RoundSum
from fedmef_dist.tracking import jsonl
from fedmef_dist.tracking.lines import read_lines

SEEDS = 250

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="pathlib keeps functions of os of its own")


def first_wrong(seeds):
    """The message of the first schedule that does not end as it must; None where all do."""
    for seed in seeds:
        try:
            seeded_world.play(seed)
        except WrongError as error:
            return str(error)
    return None


@pytest.mark.parametrize("first", range(0, 4 * SEEDS, SEEDS))
def test_every_schedule_ends_in_the_undisturbed_digest_or_in_a_failure_that_a_resume_mends(first):
    assert first_wrong(range(first, first + SEEDS)) is None


def test_a_seed_replays_to_the_letter():
    for seed in range(20):
        assert seeded_world.play(seed).trace == seeded_world.play(seed).trace


def test_the_command_shows_a_schedule():
    command = [sys.executable, str(Path(seeded_world.__file__)), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "start: job 1.0" in done.stdout
    assert done.stdout.rstrip().endswith("has the undisturbed digest")


def test_the_seeds_try_what_they_should():
    told = "\n".join("\n".join(seeded_world.play(seed).trace) for seed in range(150))
    for text in [
        *("is killed", "a power cut", "is lost", "stops for", "is asked to stop", "the disk is full"),
        *("ends before", "ends with 75", "another run is writing here", "cannot be written", "Connection closed"),
        *("no answer from", "begins behind round 3", "locks are missing", "ends with 0"),
    ]:
        assert text in told, text


# --- a world that finds nothing is worth nothing: each of these faults is found


def forgetful(path, data, **_):
    atomic.write_bytes(path, data, durable=False)


def own_wish(self, stopping=False, *, reduce=RoundSum.reduce):
    return replace(reduce(self, stopping), stopping=stopping)


FAULTS = {
    "checkpoints are not synced": (checkpoint_files, "write_bytes", forgetful),
    "their names are not synced": (checkpoint, "sync_directory", lambda path: None),
    "a new directory is not synced": (directory, "make_directory", lambda path: path.mkdir(exist_ok=True)),
    "what a killed start leaves is foreign": (directory, "is_of_a_start", lambda name: name.startswith("owner")),
    "nobody looks for another owner": (owner, "_wait_for", lambda run_dir, lock: owner.look(run_dir)),
    "a round counts although it was abandoned": (RoundSum, "abandon", lambda self: None),
    "ranks stop each at its own wish": (RoundSum, "reduce", own_wish),
    "lines behind the checkpoint stay": (jsonl, "lines_until", lambda path, *_: read_lines(path.parent)[0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_protocol_is_found_and_its_seed_is_told(monkeypatch, fault):
    monkeypatch.setattr(*FAULTS[fault])
    message = first_wrong(range(300))
    assert message is not None
    assert "python tests/seeded_world.py --seed " in message


# --- the disk


@pytest.fixture
def disk(tmp_path):
    """A disk, and the process that writes on it."""
    root = tmp_path / "disk"
    root.mkdir()
    world = SimpleNamespace(caller=SimpleNamespace(alive=True), step=lambda what: None, alive=lambda: None)
    world.unlock = lambda handle: None
    disk = Disk(root, world, random.Random(0))
    with disk.mounted():
        yield disk, root
        world.caller = None


def left(disk, root, times=60):
    """What different power cuts leave of the files: every content that occurs."""
    found, caller = set(), disk.world.caller
    tree = disk.tree
    for _ in range(times):
        disk.world.caller = None
        before = {path: path.read_bytes() for path in root.iterdir()}
        names, safe, pending = dict(tree.names), dict(tree.safe), list(tree.pending)
        nodes = {node: node.safe for node in names.values()}
        disk.cut_power()
        found.add(tuple(sorted((path.name, path.read_bytes()) for path in root.iterdir())))
        tree.names, tree.safe, tree.pending = names, safe, pending
        for node, content in nodes.items():
            node.safe = content
        for path in root.iterdir():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        disk.world.caller = caller
    return found


def test_what_was_synced_stays_and_what_was_not_may_be_lost(disk):
    disk, root = disk
    atomic.write_bytes(root / "a", b"old")
    assert left(disk, root) == {(("a", b"old"),)}
    atomic.write_bytes(root / "a", b"new", durable=False)
    contents = {dict(one)["a"] for one in left(disk, root) if len(one) == 1}
    assert contents == {b"old", b"", b"n", b"ne", b"new"}


def test_a_full_disk_takes_no_more(disk):
    disk, root = disk
    disk.full = True
    for _ in range(10):
        with pytest.raises(OSError, match="No space"):
            atomic.write_bytes(root / "a", b"x")
    disk.full = False
    atomic.write_bytes(root / "a", b"x")
    assert [path.name for path in root.iterdir()] == ["a"]
