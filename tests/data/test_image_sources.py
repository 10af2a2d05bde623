"""Every image data set in its original format: what is read, and what is refused."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import data_files
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fedmef_dist.base.errors import UserError
from fedmef_dist.data import cifar, cinic10, digest, svhn, tiny_imagenet
from fedmef_dist.data.archives import Archive, unpack
from fedmef_dist.data.checks import constant_images
from fedmef_dist.data.dataset import Split
from fedmef_dist.data.folder import FolderSettings
from fedmef_dist.data.images import channel_statistics
from fedmef_dist.data.sources import DataSettings, load_dataset


def load(root, dataset, **keys):
    return load_dataset(DataSettings(dataset=dataset, root=str(root), **keys), seed=0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def image_row(values):
    """(H, W, C) as a data set holds it."""
    return torch.from_numpy(np.array(values)).permute(2, 0, 1)


# --- what is read


def test_cifar10(tmp_path):
    data_files.cifar10(tmp_path)
    data = load(tmp_path, "cifar10")
    assert data.train.images.shape == (50, 3, 32, 32)
    assert data.train.labels.tolist() == list(range(10)) * 5
    planes = data_files.pixels(3072, seed=1003)  # record 3 of data_batch_2
    assert data.train.images[13, 1, 0, 5] == planes[1024 + 5]
    assert data.train.images[13, 2, 31, 0] == planes[2048 + 31 * 32]
    assert data.test.images[9, 0, 0, 0] == data_files.pixels(3072, seed=5009)[0]
    assert data.train.images.is_contiguous(memory_format=torch.channels_last)


def test_cifar100_uses_the_fine_labels(tmp_path):
    data_files.cifar100(tmp_path)
    data = load(tmp_path, "cifar100")
    assert data.classes == 100
    assert data.train.labels.tolist() == [99 - i for i in range(40)]
    assert data.test.images[2, 0, 0, 7] == data_files.pixels(3072, seed=1002)[7]


def test_svhn_writes_a_zero_as_ten(tmp_path):
    data_files.svhn(tmp_path)
    data = load(tmp_path, "svhn")
    assert data.train.labels.tolist() == [i % 10 for i in range(40)]
    assert torch.equal(data.test.images[3], image_row(data_files.pixels(32, 32, 3, 40, seed=1)[..., 3]))
    assert not data.flip


def test_cinic10(tmp_path):
    data_files.cinic10(tmp_path)
    data = load(tmp_path, "cinic10")
    assert (len(data.train), len(data.test), data.classes) == (40, 40, 10)
    assert data.train.labels.tolist() == [label for label in range(10) for _ in range(4)]
    assert torch.equal(data.test.images[9], image_row(data_files.pixels(32, 32, 3, seed=2021)))  # bird 1


def test_tiny_imagenet(tmp_path):
    data_files.tiny_imagenet(tmp_path)
    data = load(tmp_path, "tiny_imagenet")
    assert (data.train.images.shape, data.classes, data.pad) == ((42, 3, 64, 64), 3, 8)
    assert data.train.labels.tolist() == [0] * 14 + [1] * 14 + [2] * 14
    assert data.test.labels.tolist() == [2, 1, 0]
    with Image.open(tmp_path / "tiny-imagenet-200/val/images/val_1.JPEG") as image:
        assert torch.equal(data.test.images[1], image_row(image))
    first = data.train.images[0]  # a grey image, of which every channel is the same
    assert torch.equal(first[0], first[1])


def test_femnist_knows_its_writers(tmp_path):
    data_files.femnist(tmp_path)
    data = load(tmp_path, "femnist")
    assert (data.train.images.shape, data.test.images.shape, data.classes) == ((36, 1, 28, 28), (24, 1, 28, 28), 62)
    assert data.owners.tolist() == [1] * 12 + [2] * 12 + [0] * 12
    assert data.test_owners.tolist() == [0] * 12 + [1] * 12
    assert data.train.labels[12:15].tolist() == [2, 3, 4]
    expected = data_files.pixels(12, 784, seed=2)[3].reshape(1, 28, 28)
    assert torch.equal(data.train.images[15], torch.from_numpy(expected))
    assert data.mean[0] == pytest.approx(data.train.images.double().mean().item() / 255)
    assert data.std[0] == pytest.approx(data.train.images.double().std(correction=0).item() / 255)


def test_a_folder_of_images_of_any_size(tmp_path):
    data_files.folder(tmp_path)
    data = load(tmp_path, "folder", folder=FolderSettings(image_size=16))
    assert (data.train.images.shape, data.test.images.shape, data.classes) == ((40, 3, 16, 16), (40, 3, 16, 16), 2)
    assert data.train.labels.tolist() == [0] * 20 + [1] * 20
    assert len(data.mean) == len(data.std) == 3


def test_a_folder_is_scaled_to_its_shorter_side_and_cut_in_the_middle(tmp_path):
    stripes = np.zeros((16, 48, 3), dtype=np.uint8)
    stripes[:, 12:36] = 200  # wider than the middle, since scaling looks at neighbours
    stripes[:2, 24] = 230  # a spot, since a constant class would be refused
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(stripes).save(tmp_path / "images" / name / f"{number}.png")
    data = load(tmp_path, "folder", folder=FolderSettings(image_size=8, train="", test=None))
    assert (len(data.train), len(data.test)) == (8, 2)
    assert data.shape == (1, 8, 8)  # every image is grey
    assert (data.train.images >= 200).all()
    assert (data.train.images == 200).float().mean() > 0.9


def test_channel_statistics_equal_the_plain_formula():
    images = torch.from_numpy(data_files.pixels(5000, 3, 3, 2))
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).double().mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx((images / 255).double().std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-6)


@pytest.mark.parametrize("size", [(4, 4), (64, 64)])
def test_statistics_and_constants_take_as_much_memory_for_large_images_as_for_small_ones(monkeypatch, size):
    monkeypatch.setattr(digest, "_CHUNK", 5000)
    counted, bincount = [], np.bincount

    def watched(values, **keys):
        counted.append(values.size)
        return bincount(values, **keys)

    monkeypatch.setattr(np, "bincount", watched)
    images = torch.from_numpy(data_files.pixels(400, *size)).unsqueeze(1)
    images[7] = 9
    mean, _ = channel_statistics(images)
    assert mean == pytest.approx([images.double().mean().item() / 255])
    assert sum(counted) == images.numel()
    assert max(counted) <= 5000
    assert np.flatnonzero(constant_images(Split(images, torch.zeros(400)))).tolist() == [7]


# --- what is refused


def refusal(root, dataset, **keys):
    with pytest.raises(UserError) as caught:
        load(root, dataset, **keys)
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= 3
    assert not list(root.rglob("*.npy"))
    return str(caught.value)


@pytest.mark.parametrize("dataset", data_files.WRITE)
def test_a_missing_data_set_says_which_file_is_expected_where(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr("fedmef_dist.data.fashion_mnist.DEBIAN_FOLDER", tmp_path / "debian")
    message = refusal(tmp_path, dataset)
    assert "missing" in message
    assert str(tmp_path) in message


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def mat(path, **arrays):
    savemat(path, arrays)


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(next(iter(content["user_data"].values())))
    path.write_text(json.dumps(content))


def stand_twice(path):
    """The first image once more, with the last one's class."""
    lines = path.read_text().splitlines()
    name, other = lines[0].split("\t")[0], lines[-1].split("\t", 1)[1]
    path.write_text("\n".join([*lines, f"{name}\t{other}"]))


C10 = "cifar-10-batches-bin/data_batch_3.bin"
C100 = "cifar-100-binary/train.bin"
SVHN = "svhn/test_32x32.mat"
CINIC = "CINIC-10/train/bird/cifar10-train-2.png"
TINY = "tiny-imagenet-200/val/val_annotations.txt"
WNIDS = "tiny-imagenet-200/wnids.txt"
LEAF = "femnist/train/all_data_0_niid_0.json"
GOOD = np.zeros((32, 32, 3, 2), np.uint8)


@pytest.mark.parametrize(
    ("dataset", "name", "spoil", "message"),
    [
        ("cifar10", C10, lambda path: path.write_bytes(b""), "an empty file"),
        ("cifar10", C10, lambda path: path.write_bytes(path.read_bytes()[:-1]), "whole records of 3073 bytes"),
        ("cifar10", C10, lambda path: path.write_bytes(data_files.cifar_record([10], 1)), "a label of 10"),
        ("cifar100", C100, lambda path: path.write_bytes(path.read_bytes()[:-1]), "whole records of 3074 bytes"),
        ("cifar100", C100, lambda path: path.write_bytes(data_files.cifar_record([3, 100], 1)), "labels of 0 to 99"),
        ("svhn", SVHN, lambda path: path.write_bytes(b""), "an empty file"),
        ("svhn", SVHN, cut, "a whole MATLAB file of format 5"),
        ("svhn", SVHN, lambda path: cut(path, 0.02), "a whole MATLAB file of format 5"),
        ("svhn", SVHN, lambda path: path.write_bytes(b"\x89HDF\r\n"), "a MATLAB file of format 5"),
        ("svhn", SVHN, lambda path: mat(path, y=[[1]]), "images X"),
        ("svhn", SVHN, lambda path: mat(path, X=GOOD.astype(float), y=[[1], [2]]), "images X"),
        ("svhn", SVHN, lambda path: mat(path, X=GOOD, y=[[1]]), "2 labels y"),
        ("svhn", SVHN, lambda path: mat(path, X=GOOD, y=[[0], [1]]), "labels of 1 to 10"),
        ("svhn", SVHN, lambda path: mat(path, X=GOOD, y=[[np.nan], [1]]), "whole labels of 1 to 10"),
        ("svhn", SVHN, lambda path: mat(path, X=GOOD, y=[[1.5], [1]]), "whole labels of 1 to 10"),
        ("cinic10", CINIC, lambda path: path.write_bytes(b""), "a whole image"),
        ("cinic10", CINIC, cut, "a whole image"),
        ("cinic10", CINIC, lambda path: path.write_text("<html>"), "a whole image, found none of PNG, JPEG"),
        ("cinic10", CINIC, lambda path: data_files.image(path, 31), "32x32 pixels, found 31x31"),
        ("cinic10", "CINIC-10/train/bird/a.csv", lambda path: path.write_text(""), "an image, found a file of another"),
        ("cinic10", "CINIC-10/train/birds", lambda path: path.mkdir(), "a class, one of airplane"),
        ("cinic10", "CINIC-10/test/ship", lambda path: [one.unlink() for one in path.iterdir()], "images, found none"),
        ("tiny_imagenet", TINY, lambda path: path.write_text(""), "an empty file"),
        ("tiny_imagenet", TINY, lambda path: path.write_text("val_0.JPEG n1\n"), "an image and its class on each line"),
        ("tiny_imagenet", WNIDS, lambda path: path.write_text(path.read_text() * 2), "class once"),
        ("tiny_imagenet", TINY, lambda path: stand_twice(path), "one class for val_0.JPEG"),
        ("tiny_imagenet", TINY, lambda path: cut(path, 0.4), "a line for val_1.JPEG|its class on each line"),
        ("tiny_imagenet", "tiny-imagenet-200/val/images/val_1.JPEG", lambda path: path.unlink(), "the 3 images"),
        ("tiny_imagenet", "tiny-imagenet-200/train/n01443537/images/n01443537_3.JPEG", cut, "a whole image"),
        ("femnist", LEAF, lambda path: path.write_bytes(b""), "an empty file"),
        ("femnist", LEAF, cut, "a JSON file"),
        ("femnist", LEAF, lambda path: path.write_text("[" * 100_000), "a JSON file"),
        ("femnist", LEAF, lambda path: path.write_text('{"users": []}'), "LEAF's key user_data"),
        ("femnist", LEAF, lambda path: path.write_text('{"user_data": {"w": 3}}'), "the keys x and y for writer 'w'"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one["x"][0].pop()), "numbers for writer"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one["y"].pop()), "784 pixels and a label"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one.update(y=[62] * 12)), "labels of 0 to 61"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one.update(y=["a"] * 12)), "numbers for writer"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one["x"][0].__setitem__(0, 9)), "pixels of 0 to 1"),
        ("femnist", LEAF, lambda path: edit_json(path, lambda one: one["x"][0].__setitem__(0, None)), "pixels of 0 to"),
        ("folder", "images/train/cat/000.png", cut, "a whole image"),
        ("folder", "images/train/cat/notes.txt", lambda path: path.write_text(""), "a file of another kind"),
        ("folder", "images/test/bird", lambda path: path.mkdir(), "a class, one of cat, dog"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_what_was_expected(tmp_path, dataset, name, spoil, message):
    data_files.WRITE[dataset](tmp_path)
    spoil(tmp_path / name)
    text = refusal(tmp_path, dataset)
    assert any(part in text for part in message.split("|")), text
    assert "damaged: expected" in text
    assert name.split("/")[0] in text


def test_a_damaged_file_ends_the_command_with_status_2(tmp_path):
    data_files.cinic10(tmp_path)
    cut(tmp_path / CINIC)
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{dataset: cinic10, root: {tmp_path}}}")
    command = [sys.executable, "-m", "fedmef_dist", "run", str(config), "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(tmp_path / CINIC) in done.stderr
    assert len(done.stderr.splitlines()) == 3
    assert not (tmp_path / "run").exists()


def test_a_folder_of_one_class_or_too_few_images(tmp_path):
    data_files.image(tmp_path / "images/train/cat/1.png")
    assert "at least two classes" in refusal(tmp_path, "folder")
    data_files.image(tmp_path / "images/train/dog/1.png")
    assert "at least five images" in refusal(tmp_path, "folder", folder=FolderSettings(test=None))


# --- downloads


def make_tar(path, folder, prefix=""):
    with tarfile.open(path, "w:gz") as members:
        members.add(folder, arcname=prefix)


def serve(monkeypatch, module, name, archive):
    old = getattr(module, name)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(module, name, Archive(archive.as_uri(), md5, old.folder))


@pytest.mark.parametrize(
    ("dataset", "module", "name", "prefix"),
    [
        ("cifar10", cifar, "CIFAR10", "cifar-10-batches-bin"),
        ("cifar100", cifar, "CIFAR100", "cifar-100-binary"),
        ("cinic10", cinic10, "ARCHIVE", "./"),
    ],
)
def test_an_archive_is_fetched_and_unpacked(tmp_path, monkeypatch, dataset, module, name, prefix):
    data_files.WRITE[dataset](tmp_path / "server")
    archive = tmp_path / f"{dataset}.tar.gz"
    make_tar(archive, next((tmp_path / "server").iterdir()), prefix)
    serve(monkeypatch, module, name, archive)
    fetched = load(tmp_path / "here", dataset, download=True)
    assert torch.equal(fetched.train.images, load(tmp_path / "server", dataset).train.images)


def test_a_zip_file_is_fetched_and_unpacked(tmp_path, monkeypatch):
    data_files.tiny_imagenet(tmp_path / "server")
    archive = tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as members:
        for path in sorted((tmp_path / "server").rglob("*")):
            members.write(path, path.relative_to(tmp_path / "server"))
    serve(monkeypatch, tiny_imagenet, "ARCHIVE", archive)
    assert len(load(tmp_path / "here", "tiny_imagenet", download=True).train) == 42


def test_svhn_is_fetched(tmp_path, monkeypatch):
    data_files.svhn(tmp_path)
    (tmp_path / "svhn").rename(tmp_path / "server")
    monkeypatch.setattr(svhn, "URL", (tmp_path / "server").as_uri())
    for name in svhn.MD5:
        monkeypatch.setitem(svhn.MD5, name, hashlib.md5((tmp_path / "server" / name).read_bytes()).hexdigest())
    assert len(load(tmp_path, "svhn", download=True).test) == 40


def test_an_archive_without_what_is_needed(tmp_path, monkeypatch):
    data_files.cifar10(tmp_path / "server")
    (tmp_path / "server/cifar-10-batches-bin/test_batch.bin").unlink()
    archive = tmp_path / "cifar.tar.gz"
    make_tar(archive, tmp_path / "server/cifar-10-batches-bin", "cifar-10-batches-bin")
    serve(monkeypatch, cifar, "CIFAR10", archive)
    assert "expected an archive with test_batch.bin, found none" in refusal(tmp_path / "here", "cifar10", download=True)


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, name):
    (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"a whole tar\.gz or zip file"):
        unpack(tmp_path / name, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("damage", ["truncated", "checksum"])
def test_an_archive_damaged_on_its_way_is_named(tmp_path, damage):
    data_files.cifar10(tmp_path / "server")
    archive = tmp_path / "c.tar.gz"
    make_tar(archive, tmp_path / "server/cifar-10-batches-bin", "cifar-10-batches-bin")
    content = archive.read_bytes()
    archive.write_bytes(content[:-20_000] if damage == "truncated" else content[:-8] + b"12345678")
    with pytest.raises(UserError, match=r"damaged: expected a whole tar\.gz or zip file[\s\S]*c\.tar\.gz"):
        unpack(archive, tmp_path / "set")
    assert names(tmp_path) == ["c.tar.gz", "server"]


def test_nothing_is_unpacked_outside_of_the_folder(tmp_path):
    archive = tmp_path / "hostile.tar.gz"
    with tarfile.open(archive, "w:gz") as members:
        for name in ("set/good", "../bad", f"{tmp_path}/worse", "set/../../bad"):
            entry = tarfile.TarInfo(name)
            entry.size = 1
            members.addfile(entry, io.BytesIO(b"x"))
        link = tarfile.TarInfo("set/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        members.addfile(link)
    unpack(archive, tmp_path / "inside" / "set")
    assert names(tmp_path) == ["hostile.tar.gz", "inside"]
    assert names(tmp_path / "inside") == ["set"]
    assert names(tmp_path / "inside" / "set") == ["good"]
