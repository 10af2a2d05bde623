import json
from pathlib import Path

import pytest
import torch

from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.runs import checkpoint, checkpoint_files
from fedmef_dist.runs.checkpoint import (
    Checkpoint,
    CheckpointStore,
    broadcast,
    check_values,
)
from fedmef_dist.runs.checkpoint_files import seal


def a_checkpoint(number, **state):
    generator = torch.Generator().manual_seed(number)
    tensors = {
        "values": torch.randn(7, generator=generator),
        "mask": torch.randint(256, (3,), generator=generator, dtype=torch.uint8),
        "known_version": torch.arange(4) - 1,
        "empty": torch.empty(0),
    }
    return Checkpoint(tensors, {"round": number, **state})


def same(one, other):
    assert one.state == other.state
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name])


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, keep=2)


def names(store):
    return sorted(path.name for path in store.directory.iterdir())


def test_what_is_saved_is_loaded_again(store):
    # Floats that have no short decimal form, and bits that no rounding survives.
    saved = a_checkpoint(3, totals={"a": 0.1 + 0.2, "b": 1e-300, "last": {"x": "y", "none": None}}, costs=[1.5, 2**60])
    saved.tensors["values"][:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    store.save(saved)
    loaded = store.load(3)
    assert loaded.state == saved.state
    for name, tensor in saved.tensors.items():
        assert tensor.numpy().tobytes() == loaded.tensors[name].numpy().tobytes()


def test_saving_leaves_the_checkpoint_given_as_it_was(store):
    saved = a_checkpoint(1)
    store.save(saved)
    assert saved.state == {"round": 1}


def test_a_run_without_checkpoints_has_none(store):
    assert store.rounds() == []


def test_the_newest_are_kept(store):
    for number in (5, 10, 15, 20):
        store.save(a_checkpoint(number))
    assert store.rounds() == [15, 20]
    assert names(store) == ["round-000015", "round-000020"]
    same(store.load(15), a_checkpoint(15))
    same(store.load(20), a_checkpoint(20))


def test_rounds_are_ordered_as_numbers(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    for number in (2, 999_999, 1_000_000):
        store.save(a_checkpoint(number))
    assert store.rounds() == [2, 999_999, 1_000_000]


def test_other_things_in_the_directory_do_not_count(store):
    store.save(a_checkpoint(5))
    (store.directory / "round-abc").mkdir()
    (store.directory / "round-000009").write_text("a file")
    (store.directory / ".round-000010.partial").mkdir()
    (store.directory / "round-000011").mkdir()
    (store.directory / "round-12").symlink_to(store.directory / "round-000005")
    (store.directory / "round-000013").symlink_to(store.directory / "round-000005")
    (store.directory / "round-0000005").mkdir()
    assert store.rounds() == [5]


def test_a_round_saved_again_is_replaced(store):
    store.save(a_checkpoint(5, note="old"))
    store.save(a_checkpoint(5, note="new"))
    assert store.load(5).state["note"] == "new"


def test_the_folder_of_the_checkpoints_outlasts_a_power_cut_too(store, monkeypatch):
    synced = []
    monkeypatch.setattr(checkpoint_files, "sync_directory", synced.append)
    store.save(a_checkpoint(5))
    assert synced == [store.run_dir]


def test_who_is_killed_while_an_old_one_is_deleted_leaves_nothing_that_looks_like_one(store, monkeypatch):
    for number in (5, 10):
        store.save(a_checkpoint(number))

    def killed(path, **_):
        (path / "state.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            store.save(a_checkpoint(15))
    assert checkpoint_files.passed_over(store.run_dir) == []
    store.save(a_checkpoint(20))
    assert names(store) == ["round-000015", "round-000020"]


@pytest.mark.parametrize("step", ["write_json", "sync_directory"])
def test_an_interrupted_save_leaves_the_last_one_whole(store, monkeypatch, step):
    for number in (5, 10):
        store.save(a_checkpoint(number))

    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if step == "sync_directory" else checkpoint_files, step, power_cut)
        with pytest.raises(KeyboardInterrupt):
            store.save(a_checkpoint(15))
    for number in store.rounds():
        same(store.load(number), a_checkpoint(number))
    assert set(store.rounds()) >= {5, 10}

    store.save(a_checkpoint(15))
    assert store.rounds() == [10, 15]
    assert names(store) == ["round-000010", "round-000015"]


def test_an_interrupted_save_of_the_same_round_leaves_the_old_one(store, monkeypatch):
    store.save(a_checkpoint(5, note="old"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.save(a_checkpoint(5, note="new"))
    assert store.load(5).state["note"] == "old"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def change_the_state(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_version": 9}))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("state.safetensors", lambda path: path.unlink(), "No such file"),
        ("state.json", lambda path: path.unlink(), "No such file"),
        ("state.safetensors", lambda path: path.write_bytes(b""), "its content is not what was written"),
        ("state.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9]), "its content is not"),
        ("state.safetensors", flip_a_bit, "its content is not what was written"),
        ("state.json", change_the_state, "its content is not what was written"),
        ("state.json", lambda path: path.write_text(""), "Expecting value"),
        ("state.json", lambda path: path.write_text("[1]"), "its content is not what was written"),
        ("state.json", lambda path: path.write_text("{}"), "its content is not what was written"),
        ("state.json", lambda path: path.write_bytes(b"\xff\xfe\xff"), "codec can't decode"),
        ("state.json", lambda path: path.write_text("[" * 100_000), "recursion"),
        ("state.json", lambda path: path.write_text('{"costs": [NaN]}'), "NaN is no value"),
    ],
)
def test_a_broken_checkpoint_is_named_and_nothing_else_is_touched(store, name, damage, reason):
    for number in (5, 10):
        store.save(a_checkpoint(number, mask_version=3))
    path = store.directory / "round-000010"
    damage(path / name)
    before = {file: file.read_bytes() for file in store.directory.rglob("*") if file.is_file()}
    with pytest.raises(UserError) as caught:
        store.load(10)
    what, where, mend = str(caught.value).split("\n")
    assert what.startswith("the checkpoint is broken: ")
    assert reason in what
    assert where == f"where: {path}"
    assert mend == "mend: delete that directory; the run then goes on from the one before it, or from the start"
    assert {file: file.read_bytes() for file in store.directory.rglob("*") if file.is_file()} == before
    same(store.load(5), a_checkpoint(5, mask_version=3))


def resign(store, number, data=None, **changes):
    """What a stranger can do: change the files and give them a valid digest."""
    path = store.directory / f"round-{number:06d}"
    state = {**json.loads((path / "state.json").read_text()), **changes}
    del state["sha256"], state["bytes"]
    data = (path / "state.safetensors").read_bytes() if data is None else data
    (path / "state.safetensors").write_bytes(data)
    (path / "state.json").write_text(json.dumps(seal(data, state)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"round": 4}, "it is of round 4"), ({"data": b"cos\nsystem\n(S'true'\ntR."}, "Error while deserializing")],
)
def test_a_valid_digest_is_not_trusted(store, change, reason):
    store.save(a_checkpoint(5))
    resign(store, 5, **change)
    with pytest.raises(UserError, match=f"the checkpoint is broken: {reason}"):
        store.load(5)


# --- falling back


def test_the_one_before_a_damaged_one_is_used_and_the_damage_named(store, capsys):
    store.keep = 3
    for number in (5, 10, 15):
        store.save(a_checkpoint(number))
    for number in (10, 15):
        flip_a_bit(store.directory / f"round-{number:06d}" / "state.safetensors")
    same(store.load_newest(), a_checkpoint(5))
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["the checkpoint is broken"] * 2
    assert lines[0].endswith(f"where: {store.directory}/round-000015; the one before it is tried, of round 10")
    assert lines[1].endswith("the one before it is tried, of round 5")


def test_without_one_before_it_a_damaged_one_ends_the_run(store):
    store.save(a_checkpoint(5))
    flip_a_bit(store.directory / "round-000005" / "state.safetensors")
    with pytest.raises(UserError, match="the checkpoint is broken"):
        store.load_newest()


def test_damaged_ones_ahead_do_not_push_out_a_good_one(store):
    store.keep = 1
    for number in (5, 20):
        store.save(a_checkpoint(number))
        store.keep = 2
    flip_a_bit(store.directory / "round-000020" / "state.safetensors")
    store.keep = 1
    store.save(a_checkpoint(6))
    assert store.rounds() == [6]


# --- disks that do not take it


@pytest.mark.parametrize("step", ["write_json", "sync_directory"])
def test_a_full_disk_is_said_once_and_the_last_good_one_stays(store, monkeypatch, capsys, step):
    assert store.try_save(a_checkpoint(5))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if step == "sync_directory" else checkpoint_files, step, full)
        assert not store.try_save(a_checkpoint(10))
        assert not store.try_save(a_checkpoint(15))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoints cannot be written: No space left on device; the run goes on; where: ")
    assert not list(store.directory.glob(".*"))
    same(store.load(5), a_checkpoint(5))
    assert store.try_save(a_checkpoint(20))
    same(store.load_newest(), a_checkpoint(20))


@pytest.mark.parametrize("place", ["checkpoints", "round-000005", "state.safetensors"])
def test_a_checkpoint_that_cannot_be_looked_at_does_not_count_as_missing(store, monkeypatch, place):
    """Its run would start again, and remove it."""
    store.save(a_checkpoint(5))
    with monkeypatch.context() as patch:
        forbid(patch, "lstat", place)
        with pytest.raises(UserError, match="^the checkpoints cannot be read: Permission denied\nwhere: .*" + place):
            store.load_newest()
    assert store.rounds() == [5]


def test_a_checkpoint_that_is_written_counts_although_the_older_ones_cannot_be_listed(store, monkeypatch, capsys):
    for number in (5, 10):
        store.save(a_checkpoint(number))
    with monkeypatch.context() as patch:
        forbid(patch, "iterdir", "checkpoints")
        with pytest.raises(UserError, match=r"^the checkpoints cannot be read: Permission denied\n"):
            store.rounds()
        assert store.try_save(a_checkpoint(15))
    assert capsys.readouterr().err == ""
    assert store.rounds() == [5, 10, 15]
    assert store.try_save(a_checkpoint(20))
    assert store.rounds() == [15, 20]


def forbid(patch, method, name):
    """A path of this name lets nobody look."""
    real = getattr(Path, method)

    def look(path):
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return real(path)

    patch.setattr(Path, method, look)


# --- does it fit this run


@pytest.mark.parametrize(
    ("kind", "values", "what"),
    [
        (int, "3", "Input should be a valid integer"),
        (int, True, "Input should be a valid integer"),
        (float, None, "Input should be a valid number"),
        (str, 5, "Input should be a valid string"),
        (list, {}, "Input should be a valid array"),
        (dict, [1], "Input should be an object"),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_name(kind, values, what):
    with pytest.raises(UserError) as caught:
        check_values(Checkpoint({}, {}, "some/where"), kind, values, "part.key")
    assert str(caught.value).split("\n") == [
        f"the checkpoint is not of this run: part.key: {what}",
        "where: some/where",
        "mend: delete that directory, or choose another --run-dir",
    ]


def test_a_value_within_another_is_named_too():
    with pytest.raises(UserError, match=r"not of this run: costs\.1: Input should be a valid number"):
        check_values(Checkpoint({}, {}), list[float], [1.0, "x"], "costs")
    with pytest.raises(UserError, match=r"not of this run: 1: Input should be a valid number"):
        check_values(Checkpoint({}, {}), list[float], [1.0, "x"])


def test_right_values_are_given_back():
    assert check_values(Checkpoint({}, {}), dict[str, float], {"a": 1, "b": 0.1 + 0.2}) == {"a": 1.0, "b": 0.1 + 0.2}


SHARE = """
import os, sys, torch
from fedmef_dist.runs.checkpoint import Checkpoint, broadcast
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group

with open_group(detect(os.environ), RuntimeSettings(timeout=30.0)) as group:
    assert broadcast(None, group) is None
    tensors = {"values": torch.arange(5) / 3, "mask": torch.tensor([1, 255], dtype=torch.uint8), "none": torch.empty(0)}
    own = Checkpoint(tensors, {"round": 3, "totals": {"x": 0.1}}, "here") if group.rank == 0 else None
    got = broadcast(own, group)
    assert (got.state, got.where) == ({"round": 3, "totals": {"x": 0.1}}, "here")
    assert all(torch.equal(got.tensors[name], tensor) for name, tensor in tensors.items()), got
    print(f"rank {group.rank} has it\\n", end="", flush=True)
"""


@pytest.mark.cluster
def test_every_rank_gets_what_rank_0_has_read(launch, tmp_path):
    script = tmp_path / "share.py"
    script.write_text(SHARE)
    done = launch("mpirun", 2, script)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["rank 0 has it", "rank 1 has it"]


def test_one_rank_has_it_already():
    checkpoint = a_checkpoint(1)
    environment = Environment("single", 0, 1, 0, 1, None, None)
    assert broadcast(checkpoint, Group(environment, torch.device("cpu"), "gloo")) is checkpoint


# --- whose directory it is


def test_a_checkpoint_gets_no_name_in_a_directory_that_is_no_longer_this_runs(store):
    store.save(a_checkpoint(5))

    def refuse():
        raise FilesLostError("another run has taken it over")

    store.make_sure = refuse
    with pytest.raises(FilesLostError):
        store.try_save(a_checkpoint(10))
    assert store.rounds() == [5]


def test_a_run_that_begins_behind_an_earlier_round_forgets_the_later_ones(store):
    for number in (5, 10):
        store.save(a_checkpoint(number))
    store.forget_later(5)
    assert names(store) == ["round-000005"]
