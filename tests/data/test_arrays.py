"""Arrays that users bring, in each of the formats."""

import io
import zipfile

import data_files
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.shapes import Shape, shape_of
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.data.text import TextDataset


def settings(root, **keys):
    return DataSettings.model_validate({"dataset": "arrays", "root": str(root), "arrays": keys})


def load(root, **keys):
    return load_dataset(settings(root, **keys), seed=0)


def npz(root, **arrays):
    np.savez(root / "arrays.npz", **arrays)


IMAGES = data_files.pixels(20, 8, 8)
LABELS = np.arange(20) % 2


def test_a_client_is_the_same_as_a_whole_number_and_as_a_fraction(tmp_path):
    """What pandas reads becomes a fraction where one client of the column was missing once."""
    train = {"images": IMAGES, "labels": LABELS, "clients": np.arange(20) // 5}
    npz(tmp_path, **train, test_images=IMAGES, test_labels=LABELS, test_clients=np.arange(20.0) // 5)
    data = load(tmp_path)
    assert torch.equal(data.owners, data.test_owners)


def test_images_labels_and_clients_of_both_parts(tmp_path):
    parts = data_files.arrays(tmp_path)
    data = load(tmp_path)
    assert data.shape == (3, 8, 8)
    assert data.classes == 4
    assert torch.equal(data.train.images[7], torch.from_numpy(parts["images"][7]).permute(2, 0, 1))
    assert data.test.labels.tolist() == parts["test_labels"].tolist()
    assert data.owners[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert data.test_owners[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert (data.pad, data.flip) == (1, False)
    assert shape_of(settings(tmp_path)) == Shape((3, 8, 8), 4)


def test_each_format_gives_one_digest(tmp_path):
    arrays = {"images": IMAGES, "labels": LABELS, "clients": LABELS * 7}
    npz(tmp_path, **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    save_file({name: np.ascontiguousarray(values) for name, values in arrays.items()}, tmp_path / "x.safetensors")
    (tmp_path / "folder").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", values)
    digests = {load(tmp_path, path=path).digest for path in ("arrays.npz", "small.npz", "x.safetensors", "folder")}
    assert len(digests) == 1
    assert load(tmp_path, path="folder").owners.tolist() == load(tmp_path).train.labels.tolist()


def test_without_a_test_part_every_fifth_of_a_label_is_held_out(tmp_path):
    npz(tmp_path, images=IMAGES, labels=LABELS)
    data = load(tmp_path)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert data.owners is None
    # The fifth and tenth sample of label 0 are 8 and 18, of label 1 they are 9 and 19.
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(IMAGES[[8, 9, 18, 19]]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 257, 32768, 65535], np.uint16), [0, 1, 128, 255]),
        (np.array([0, 0.5, 0.25, 1], np.float32), [0, 128, 64, 255]),
        (np.array([False, True, True, False]), [0, 255, 255, 0]),
    ],
)
def test_each_type_of_pixel_is_scaled_by_its_own_maximum(tmp_path, values, expected):
    npz(tmp_path, images=np.tile(values, (10, 4, 1)), labels=np.arange(10) % 2)
    assert load(tmp_path).train.images[0, 0, 0].tolist() == expected


def test_classes_without_samples_are_asked_for(tmp_path):
    npz(tmp_path, images=IMAGES, labels=LABELS * 2)
    assert load(tmp_path, classes=5).classes == 5
    with pytest.raises(UserError, match="labels below 2, found 2 labels, 0 to 2"):
        load(tmp_path, classes=2)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((4, 8, 8, 3), "auto", (3, 8, 8)),
        ((4, 3, 8, 8), "auto", (3, 8, 8)),
        ((4, 1, 8, 8), "auto", (1, 8, 8)),
        ((4, 3, 3, 3), "channels_first", (3, 3, 3)),
    ],
)
def test_channels_stand_at_either_end(tmp_path, shape, layout, expected):
    npz(tmp_path, images=data_files.pixels(*shape), labels=[0, 1, 0, 1],
        test_images=data_files.pixels(*shape, seed=1), test_labels=[0, 1, 0, 1])  # fmt: skip
    assert load(tmp_path, layout=layout).shape == expected


def test_token_ids_are_rows_of_context_and_one(tmp_path):
    tokens = np.arange(40).reshape(10, 4) * 7
    npz(tmp_path, tokens=tokens, clients=[3] * 5 + [1] * 5)
    data = load(tmp_path)
    assert isinstance(data, TextDataset)
    assert (data.classes, data.shape, len(data.train), len(data.test)) == (274, (3,), 8, 2)
    inputs, targets = data.train.windows(data.train.starts[-1:])
    assert (inputs.tolist(), targets.tolist()) == ([tokens[8, :3].tolist()], [tokens[8, 1:].tolist()])
    assert data.owners.tolist() == [1] * 4 + [0] * 4
    assert load(tmp_path, classes=300).classes == 300
    assert shape_of(settings(tmp_path)) == Shape((3,), 274)


TOKENS = np.arange(80).reshape(20, 4)
OBJECT = np.array([{"a": 1}] * 20, dtype=object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "an array images, found only labels"),
        ({"images": IMAGES}, "an array labels"),
        ({"images": IMAGES, "labels": LABELS[:19]}, "as many labels and clients as samples"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "as many labels and clients as samples, and some"),
        ({"images": IMAGES, "labels": LABELS, "clients": LABELS[:3]}, "as many labels and clients"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels as whole numbers"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels as whole numbers"),
        ({"images": IMAGES, "labels": LABELS[:, None]}, "labels as whole numbers"),
        ({"images": IMAGES, "labels": LABELS, "clients": np.eye(20)}, "clients as whole numbers or names"),
        ({"images": IMAGES, "labels": LABELS, "clients": LABELS + 0.5}, "clients as whole numbers or names"),
        ({"images": IMAGES, "labels": LABELS, "clients": np.where(LABELS, np.nan, 1)}, "clients as whole numbers"),
        (
            {"images": IMAGES, "labels": LABELS * 0},
            "labels of two or more classes, from 0 without gaps, found 1 labels, 0 to 0",
        ),
        ({"images": IMAGES, "labels": LABELS * 9}, "from 0 without gaps, found 2 labels, 0 to 9"),
        ({"images": IMAGES, "labels": LABELS << 30}, "from 0 without gaps"),
        ({"images": IMAGES, "labels": OBJECT}, "plain arrays"),
        ({"images": IMAGES, "labels": LABELS.astype(complex)}, "numbers or text"),
        ({"images": IMAGES.astype(np.int64), "labels": LABELS}, r"images of uint8, uint16, bool"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "fractions of 0 to 1"),
        ({"images": np.full((20, 8, 8), np.nan), "labels": LABELS}, "fractions of 0 to 1"),
        ({"images": IMAGES[:, :, :5], "labels": LABELS}, "square images"),
        ({"images": IMAGES.reshape(20, 64), "labels": LABELS}, "images \\(N, H, W\\)"),
        ({"images": data_files.pixels(20, 3, 3, 3), "labels": LABELS}, "channels stand at one end"),
        ({"images": data_files.pixels(20, 8, 8, 4), "labels": LABELS}, "1 or 3 channels"),
        ({"images": IMAGES[:4], "labels": LABELS[:4]}, "too few samples to hold some out"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES}, "an array test_labels"),
        ({"images": IMAGES, "labels": LABELS, "test_images": IMAGES[:, :4, :4], "test_labels": LABELS}, "one shape"),
        ({"tokens": np.zeros((9, 1), int)}, "tokens as whole numbers"),
        ({"tokens": np.zeros((9, 4)) + 0.5}, "tokens as whole numbers"),
        ({"tokens": np.zeros((9, 4), int) - 1}, "tokens of 0 to"),
        ({"tokens": TOKENS, "labels": np.zeros((20, 2), int)}, "labels as whole numbers"),
        ({"tokens": TOKENS, "labels": LABELS / 2}, "labels as whole numbers"),
        ({"tokens": TOKENS, "labels": LABELS - 1}, "labels as whole numbers"),
        ({"tokens": TOKENS, "labels": np.array(["a", "b"] * 10)}, "labels as whole numbers"),
        (
            {"tokens": TOKENS, "test_tokens": TOKENS, "test_labels": np.zeros((20, 2), int)},
            "labels as whole numbers",
        ),
        ({"images": np.stack([np.full((8, 8), 9 * i % 2, np.uint8) for i in range(20)]), "labels": LABELS}, "class 0"),
    ],
)
def test_what_is_wrong_with_an_array_is_said(tmp_path, arrays, message):
    npz(tmp_path, **arrays)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "arrays" in caught.value.where
    assert caught.value.mend


def hostile_head(shape):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return content.getvalue()


def unclosed_head():
    """A head that is no literal: NumPy's own parser gives up with an error of the tokenizer."""
    return hostile_head((20, 8, 8)).replace(b"}", b"(")


@pytest.mark.parametrize(
    "data", [unclosed_head(), b"", b"PK", b"\x93NUMPY", hostile_head((1 << 40, 1 << 20)), hostile_head((-1,))]
)
@pytest.mark.parametrize("name", ["arrays.npz", "x.safetensors", "folder", "inside"])
def test_a_damaged_file_is_refused(tmp_path, data, name):
    if name == "folder":
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").write_bytes(data)
    elif name == "inside":
        with zipfile.ZipFile(tmp_path / "inside.npz", "w") as members:
            members.writestr("images.npy", data)
        name = "inside.npz"
    else:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path, path=name)


def test_a_missing_file_or_another_kind_is_named(tmp_path):
    with pytest.raises(UserError, match="a data file is missing") as caught:
        load(tmp_path)
    assert caught.value.mend == "put it there, or correct data.root"  # nobody could download it
    (tmp_path / "x.mat").write_bytes(b"")
    with pytest.raises(UserError, match="arrays come as"):
        load(tmp_path, path="x.mat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="missing"):
        load(tmp_path, path="empty")
