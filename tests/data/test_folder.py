"""Folders of images as people leave them: what is read, passed over, and refused."""

import os

import data_files
import numpy as np
import pytest
import torch
from PIL import Image

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.checks import notices
from fedmef_dist.data.sources import DataSettings, load_dataset


def load(root, **keys):
    keys = {"image_size": 8, **keys}
    return load_dataset(DataSettings.model_validate({"dataset": "folder", "root": str(root), "folder": keys}), seed=0)


def picture(path, seed=0, mode="RGB", side=8):
    data_files.image(path, side, seed, mode)


@pytest.fixture
def root(tmp_path):
    for number, part in enumerate(("train", "test")):
        for label, name in enumerate(("cat", "dog")):
            for i in range(3):
                picture(tmp_path / "images" / part / name / f"{i}.png", 100 * number + 10 * label + i)
    return tmp_path


def test_hidden_folders_are_no_training_images_and_are_told(root):
    picture(root / "images/train/cat/.ipynb_checkpoints/0-checkpoint.png", 7)
    data = load(root)
    assert len(data.train) == 6
    assert notices(data) == ["data: passed over: 1 hidden folders"]
    assert notices(load(root)) == ["data: passed over: 1 hidden folders"]  # out of the cache, too
    (root / "images/train/cat/._1.png").write_bytes(b"\0")
    assert notices(load(root)) == ["data: passed over: 1 hidden files, 1 hidden folders"]


def test_a_class_whose_name_is_no_utf_8_is_read_and_cached(root):
    """Archives of old keep names in the encoding of the machine that they were packed on."""
    for part in ("train", "test"):
        (root / "images" / part / "cat").rename(root / "images" / part / os.fsdecode(b"caf\xe9"))
    first, again = load(root), load(root)
    assert first.reading.class_names == again.reading.class_names == (r"caf\udce9", "dog")
    assert first.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (root / ".fedmef_dist").is_dir()


def test_16_bit_images_of_two_brightnesses_stay_apart(tmp_path):
    for part in ("train", "test"):
        for name, base in (("dark", 1000), ("bright", 60000)):
            for i in range(3):
                path = tmp_path / "images" / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                levels = base + data_files.pixels(8, 8, seed=i).astype(np.uint16) * 16
                Image.fromarray(levels.astype(np.uint16)).save(path)
    data = load(tmp_path)
    bright, dark = (data.train.images[data.train.labels == label].float().mean() for label in (0, 1))
    assert data.reading.class_names == ("bright", "dark")
    assert bright.item() == pytest.approx((60000 + 16 * 127.5) / 257, abs=1)
    assert dark.item() == pytest.approx((1000 + 16 * 127.5) / 257, abs=1)
    assert data.shape == (1, 8, 8)
    assert data.reading.files == {"PNG, mode I;16, 8x8": 12}


def test_a_link_to_a_missing_file_is_named(root):
    (root / "images/train/cat/9.png").symlink_to("../../annex/9.png")
    with pytest.raises(UserError, match="a link leads nowhere") as caught:
        load(root)
    assert "images/train/cat/9.png" in caught.value.where


@pytest.mark.parametrize(
    ("mode", "channels", "expected"),
    [("L", "auto", 1), ("RGB", "auto", 3), ("L", 3, 3), ("RGB", 1, 1), ("L", 1, 1)],
)
def test_grey_data_stay_grey(tmp_path, mode, channels, expected):
    for part in ("train", "test"):
        for label, name in enumerate("ab"):
            picture(tmp_path / "images" / part / name / "1.png", label, mode)
    data = load(tmp_path, channels=channels)
    assert data.shape == (expected, 8, 8)
    with Image.open(tmp_path / "images/train/b/1.png") as image:
        wanted = np.asarray(image.convert("L" if expected == 1 else "RGB")).reshape(8, 8, expected)
    assert torch.equal(data.train.images[1], torch.from_numpy(wanted.copy()).permute(2, 0, 1))


def test_one_coloured_image_makes_all_three_channels(root):
    picture(root / "images/test/dog/grey.png", 5, "L")
    assert load(root).shape == (3, 8, 8)


def test_a_constant_class_is_refused_with_its_files(root):
    for i in range(3):
        Image.new("L", (8, 8), 255).save(root / f"images/train/dog/{i}.png")
    with pytest.raises(UserError, match="class dog: all 3 training images have the value 255") as caught:
        load(root)
    assert caught.value.where.split(", ") == [str(root / f"images/train/dog/{i}.png") for i in range(3)]
    assert not list(root.rglob("*.npy"))


def test_a_few_constant_images_are_counted(root):
    for value in (3, 200):
        Image.new("L", (8, 8), value).save(root / f"images/train/dog/{value}.png")
    assert load(root).findings.constant == 2


def test_duplicates_across_the_split_and_with_two_labels_are_told(root):
    source = root / "images/train/cat/0.png"
    for name in ("images/train/cat/again.png", "images/test/cat/same.png", "images/test/dog/other.png"):
        (root / name).write_bytes(source.read_bytes())
    found = load(root).findings
    assert (found.repeated, found.repeated_test, found.crossing, found.conflicting) == (1, 1, 2, 4)
    (line,) = notices(load(root))
    assert line.startswith("data: 2 test samples equal a training sample, 4 samples equal one with another label")
    assert notices(load(root, image_size=4))  # measured anew on what is cut


def test_folders_are_clients(tmp_path):
    for part in ("train", "test"):
        for label, name in enumerate("ab"):
            for client in ("kim", "lee"):
                picture(tmp_path / "images" / part / name / client / "1.png", label)
    data = load(tmp_path, client_from="folder")
    assert data.owners.tolist() == data.test_owners.tolist() == [0, 1, 0, 1]
    assert load(tmp_path).owners is None
    picture(tmp_path / "images/train/a/loose.png")
    with pytest.raises(UserError, match="a client, as other images have one") as caught:
        load(tmp_path, client_from="folder")
    assert caught.value.where.endswith("loose.png")


def test_a_file_says_whose_an_image_is(root):
    table = root / "images/clients.csv"
    names = sorted(path.relative_to(root / "images").as_posix() for path in root.rglob("*.png"))
    train = [name for name in names if name.startswith("train")]
    table.write_text("\ufefffile, client\n" + "".join(f"{name}, site {i % 2}\n" for i, name in enumerate(train)))
    data = load(root, client_from="file")
    assert data.owners.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.test_owners is None
    os.utime(table, ns=(1, 1))
    table.write_text("file,client\n" + "".join(f"{name},x\n" for name in train[1:]))
    with pytest.raises(UserError, match="a client, as other images have one"):
        load(root, client_from="file")
    table.write_text("file,client\n" + "".join(f"{name},x\n" for name in train) + f"{train[0]},y\n")
    with pytest.raises(UserError, match=r"one client for train/cat/0\.png, found two"):
        load(root, client_from="file")
    for text in ("", "file,client\n", "name\n1.png\n", "file,client\ntrain/cat/0.png,\n"):
        table.write_text(text)
        with pytest.raises(UserError, match=r"columns file and client|an empty file"):
            load(root, client_from="file")


def test_a_quote_that_nothing_closes_is_named(root):
    """It makes one value of the rest of the file, which Python's reader limits."""
    table = root / "images/clients.csv"
    table.write_text('file,client\n"train/cat/0.png,x\n' + "train/cat/1.png,y\n" * 10_000)
    with pytest.raises(UserError, match=r"comma-separated values[\s\S]*quotation mark") as caught:
        load(root, client_from="file")
    assert caught.value.where == str(table)


def test_without_any_client_the_way_is_named(root):
    with pytest.raises(UserError, match="a client for each image by client_from=folder"):
        load(root, client_from="folder")


# --- TinyImageNet


def tiny(root):
    return load_dataset(DataSettings(dataset="tiny_imagenet", root=str(root)), seed=0)


@pytest.mark.parametrize("inner", ["images", ""])
def test_a_validation_set_sorted_into_classes_is_read(tmp_path, inner):
    data_files.tiny_imagenet(tmp_path)
    val = tmp_path / "tiny-imagenet-200/val"
    before = tiny(tmp_path)
    for line in (val / "val_annotations.txt").read_text().splitlines():
        name, label = line.split("\t")[:2]
        target = val / label / inner
        target.mkdir(parents=True)
        (val / "images" / name).rename(target / name)
    (val / "images").rmdir()
    after = tiny(tmp_path)
    assert after.test.labels.tolist() == sorted(before.test.labels.tolist())
    assert torch.equal(after.test.images, before.test.images.flip(0))


def test_a_blank_last_line_and_a_byte_order_mark_do_no_harm(tmp_path):
    data_files.tiny_imagenet(tmp_path)
    digest = tiny(tmp_path).digest
    for name in ("wnids.txt", "val/val_annotations.txt"):
        path = tmp_path / "tiny-imagenet-200" / name
        path.write_text("\ufeff" + path.read_text() + "\n\n")
    assert tiny(tmp_path).digest == digest
