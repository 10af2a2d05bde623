"""CIFAR's pickles: read as the binary version is, and never run."""

import pickle

import data_files
import numpy as np
import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.plain_pickle import read_plain_pickle
from fedmef_dist.data.sources import DataSettings, load_dataset


def load(root, dataset, **keys):
    return load_dataset(DataSettings.model_validate({"dataset": dataset, "root": str(root), **keys}), seed=0)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_python_version_binary_version_and_arrays_have_one_digest(tmp_path, dataset):
    getattr(data_files, dataset)(tmp_path / "binary")
    getattr(data_files, f"{dataset}_python")(tmp_path / "python")
    binary, python = (load(tmp_path / form, dataset) for form in ("binary", "python"))
    (tmp_path / "own").mkdir()
    parts = {}
    for part, split in (("", binary.train), ("test_", binary.test)):
        parts |= {f"{part}images": split.images.numpy(), f"{part}labels": split.labels.numpy()}
    np.savez(tmp_path / "own/arrays.npz", **parts)
    own = load(tmp_path / "own", "arrays", arrays={"layout": "channels_first", "classes": binary.classes})
    assert torch.equal(binary.train.images, python.train.images)
    assert binary.digest == python.digest == own.digest
    assert python.reading.files == {"Python version": 6 if dataset == "cifar10" else 2}
    again = load(tmp_path / "python", dataset)  # out of the cache
    assert again.digest == binary.digest


def test_the_binary_version_is_taken_where_both_are(tmp_path):
    data_files.cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert load(tmp_path, "cifar10").reading.files == {"binary version": 6}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_protocol_gives_the_array(tmp_path, protocol, order):
    array = np.asarray(data_files.pixels(3, 4), order=order)
    (tmp_path / "x").write_bytes(pickle.dumps({"data": array, b"labels": [1, 2]}, protocol=protocol))
    found = read_plain_pickle(tmp_path / "x")
    assert np.array_equal(found["data"], array)
    assert found["labels"] == [1, 2]


class Bomb:
    def __reduce__(self):
        import os

        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Bomb(), "mkdir, which is not opened for safety"),
        ({"data": Bomb()}, "not opened for safety"),
        ({"data": np.array([Bomb()], dtype=object)}, "not opened for safety"),
        ([1, 2], "a dictionary"),
        ({"data": np.zeros(3, np.float32)}, "an array of bytes"),
        ({"data": np.zeros(3, dtype="u2")}, "an array of bytes"),
    ],
)
def test_what_is_no_plain_value_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match=message) as caught:
        read_plain_pickle(tmp_path / "x")
    assert caught.value.where == str(tmp_path / "x")
    assert not (tmp_path / "exploded").exists()


class Shaped:
    """Unpickled as an array of one byte, or none, that says to have this shape."""

    def __init__(self, *shape):
        self.shape = shape

    def __reduce__(self):
        content = bytes(1 if min(self.shape) else 0)
        state = (1, self.shape, np.dtype("u1"), False, content)
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


@pytest.mark.parametrize("shape", [(2,), (10**400,), (0, 2**70), (1,) * 70])
def test_an_array_that_its_bytes_do_not_fill_is_refused(tmp_path, shape):
    (tmp_path / "x").write_bytes(pickle.dumps({"data": Shaped(*shape)}, protocol=4))
    with pytest.raises(UserError, match="as many bytes as the shape"):
        read_plain_pickle(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"data": np.zeros((10, 3071), np.uint8)}, "an array data, uint8"),
        ({b"data": b"x"}, "an array data, uint8"),
        ({b"labels": [0] * 9}, "a list labels of 10 labels"),
        ({b"labels": [10] * 10}, "labels of 0 to 9"),
        ({b"labels": [0.5] * 10}, "labels of 0 to 9"),
        ({b"labels": [True] * 10}, "labels of 0 to 9"),
    ],
)
def test_a_batch_of_another_form_is_named(tmp_path, change, message):
    data_files.cifar10_python(tmp_path)
    path = tmp_path / "cifar-10-batches-py/data_batch_2"
    data_files.write_pickle(path, {**pickle.loads(path.read_bytes()), **change})
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, "cifar10")
    assert caught.value.where == str(path)


def test_a_cut_or_missing_batch_is_named(tmp_path):
    data_files.cifar10_python(tmp_path)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="a pickle of plain values"):
        load(tmp_path, "cifar10")
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        load(tmp_path, "cifar10")
