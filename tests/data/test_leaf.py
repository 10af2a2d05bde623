"""Natural clients' files as LEAF, TensorFlow Federated and the hub write them."""

import json

import data_files
import numpy as np
import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.checks import notices
from fedmef_dist.data.numbering import number_clients
from fedmef_dist.data.sources import DataSettings, load_dataset


def load(root, dataset="femnist", **keys):
    return load_dataset(DataSettings.model_validate({"dataset": dataset, "root": str(root), **keys}), seed=0)


def test_clients_are_numbered_by_name_and_names_by_all_their_characters():
    owners, test_owners = number_clients(["b", "a\0", "a", "b"], ["c", "a"])
    assert (owners.tolist(), test_owners.tolist()) == ([2, 1, 0, 2], [3, 0])
    owners, test_owners = number_clients(["x" * 10**6, *map(str, range(10**5))], None)  # as an array 400 GB
    assert owners[0] == 10**5
    assert test_owners is None


def test_writers_without_samples_and_files_without_users_are_counted(tmp_path):
    data_files.femnist(tmp_path)
    digest = load(tmp_path).digest
    path = tmp_path / "femnist/train/all_data_0_niid_0.json"
    content = json.loads(path.read_text())
    content["user_data"]["nobody"] = {"x": [], "y": []}
    path.write_text(json.dumps(content))
    (path.parent / "empty.json").write_text(json.dumps(data_files.leaf({})))
    data = load(tmp_path)
    assert data.digest == digest
    assert data.reading.skipped == {"files without users": 1, "writers without samples": 1}
    assert notices(data) == ["data: passed over: 1 writers without samples, 1 files without users"]


def test_lists_that_disagree_with_the_samples_and_writers_that_stand_twice_are_told(tmp_path):
    data_files.femnist(tmp_path)
    path = tmp_path / "femnist/train/all_data_1_niid_0.json"
    text = path.read_text()
    content = json.loads(text)
    del content["user_data"][content["users"][0]]
    content["user_data"]["other"] = data_files.writing(2, 0)
    path.write_text(json.dumps(content))
    assert load(tmp_path).reading.skipped == {"users with another number of samples than the file says": 2}
    path.write_text(text.replace('"user_data": {', '"user_data": {"f0000_14": {"x": [], "y": []}, ', 1))
    with pytest.raises(UserError, match="a key that stands twice"):
        load(tmp_path)


def test_files_of_macos_and_byte_order_marks_do_no_harm(tmp_path):
    data_files.femnist(tmp_path)
    digest = load(tmp_path).digest
    folder = tmp_path / "femnist/train"
    (folder / "._all_data_0_niid_0.json").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    path = folder / "all_data_0_niid_0.json"
    path.write_text("\ufeff" + path.read_text())
    data = load(tmp_path)
    assert data.digest == digest
    assert data.reading.skipped == {"hidden files": 1}


def test_files_of_nobody_are_refused_without_a_word_of_fetching(tmp_path):
    data_files.femnist(tmp_path)
    for path in (tmp_path / "femnist/test").iterdir():
        path.write_text(json.dumps(data_files.leaf({})))
    with pytest.raises(UserError, match="at least one writer with a sample") as caught:
        load(tmp_path)
    assert "fetch" not in caught.value.mend


# --- HDF5


def federated(root, writers):
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py: pip install h5py")
    (root / "femnist").mkdir()
    for seed, part in enumerate(("train", "test")):
        with h5py.File(root / "femnist" / f"fed_emnist_{part}.h5", "w") as file:
            for writer, count in writers.items():
                values = (data_files.pixels(count, 28, 28, seed=seed) / 255).astype(np.float32)
                file[f"examples/{writer}/pixels"] = values
                file[f"examples/{writer}/label"] = (np.arange(count) % 62).astype(np.int32)


def test_hdf5_is_read_as_json_is(tmp_path):
    federated(tmp_path, {"f1": 4, "f0": 3, "none": 0})
    data = load(tmp_path)
    assert data.owners.tolist() == [0] * 3 + [1] * 4
    assert torch.equal(data.train.images[4, 0], torch.from_numpy(data_files.pixels(4, 28, 28)[1]))
    assert data.reading.skipped == {"writers without samples": 2}
    assert data.reading.files == {"HDF5": 2}


def test_a_damaged_hdf5_file_is_named(tmp_path):
    federated(tmp_path, {"f1": 4})
    path = tmp_path / "femnist/fed_emnist_test.h5"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="a whole HDF5 file") as caught:
        load(tmp_path)
    assert caught.value.where == str(path)
    federated_empty = tmp_path / "other"
    federated_empty.mkdir()
    federated(federated_empty, {"f1": 0})
    with pytest.raises(UserError, match="at least one writer"):
        load(federated_empty)


def test_without_h5py_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "femnist").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"femnist/fed_emnist_{part}.h5").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UserError, match="HDF5 files need h5py"):
        load(tmp_path)


# --- Parquet


def test_parquet_as_the_hub_stores_it(tmp_path):
    data_files.parquet(tmp_path)
    data = load(tmp_path, "parquet", parquet={"client": "who"})
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 8, 8), 2, 12, 12)
    assert torch.equal(data.test.images[3], torch.from_numpy(data_files.pixels(8, 8, 3, seed=103)).permute(2, 0, 1))
    assert data.owners.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.reading.class_names == ("ant", "bee")
    assert data.reading.files == {"PNG, mode RGB, 8x8": 24}
    (tmp_path / "fractions").mkdir()
    data_files.parquet(tmp_path / "fractions", who=[i // 4 + 0.0 for i in range(12)])
    assert load(tmp_path / "fractions", "parquet", parquet={"client": "who"}).digest == data.digest
    assert load(tmp_path, "parquet", parquet={"image_size": 4, "channels": 1}).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("made", "keys", "message"),
    [
        ({}, {"label": "digit"}, "a column of labels"),
        ({}, {"image": "picture"}, "a column of images"),
        ({}, {"client": "writer"}, "a column of clients"),
        ({"size": (8, 10)}, {}, "square images of one size"),
        ({"embedded": False}, {"image": "img"}, "an image in the file itself"),
        ({"who": [*range(11), None]}, {"client": "who"}, "a client, a whole number or a name, found None"),
        ({"who": [*range(11), float("nan")]}, {"client": "who"}, "a client, a whole number or a name, found nan"),
    ],
)
def test_what_is_wrong_with_parquet_is_said(tmp_path, made, keys, message):
    data_files.parquet(tmp_path, **made)
    with pytest.raises(UserError, match=message):
        load(tmp_path, "parquet", parquet=keys)


def test_names_of_classes_that_are_no_text_are_written_out(tmp_path):
    names = {"info": {"features": {"label": {"names": ["\ud800", "bee"]}}}}
    data_files.parquet(tmp_path, description=json.dumps(names))
    assert load(tmp_path, "parquet").reading.class_names == (r"\ud800", "bee")


def test_a_description_without_an_end_names_no_classes(tmp_path):
    data_files.parquet(tmp_path, description="[" * 100_000)
    assert load(tmp_path, "parquet").reading.class_names == ()


def test_damaged_and_missing_parquet_files_are_named(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load(tmp_path, "parquet")
    data_files.parquet(tmp_path)
    path = tmp_path / "parquet/data/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="a whole Parquet file"):
        load(tmp_path, "parquet")


def test_without_pyarrow_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "parquet").mkdir()
    for part in ("train", "test"):
        (tmp_path / f"parquet/{part}.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match="Parquet files need pyarrow"):
        load(tmp_path, "parquet")
