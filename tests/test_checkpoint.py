import json

import pytest
import torch

from fedmef_dist import checkpoint as module
from fedmef_dist.checkpoint import Checkpoint, CheckpointStore
from fedmef_dist.errors import UserError


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
    for number in (999_999, 1_000_000, 2):
        store.save(a_checkpoint(number))
    assert store.rounds() == [2, 999_999, 1_000_000]


def test_other_things_in_the_directory_do_not_count(store):
    store.save(a_checkpoint(5))
    (store.directory / "round-abc").mkdir()
    (store.directory / "round-000009").write_text("a file")
    (store.directory / ".round-000010.partial").mkdir()
    assert store.rounds() == [5]


def test_a_round_saved_again_is_replaced(store):
    store.save(a_checkpoint(5, note="old"))
    store.save(a_checkpoint(5, note="new"))
    assert store.load(5).state["note"] == "new"


@pytest.mark.parametrize("step", ["write_json", "sync_directory"])
def test_an_interrupted_save_leaves_the_last_one_whole(store, monkeypatch, step):
    for number in (5, 10):
        store.save(a_checkpoint(number))

    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, step, power_cut)
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
        patch.setattr(module, "write_json", lambda *_: 1 / 0)
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
