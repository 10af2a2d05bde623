import gzip
import hashlib
import subprocess
import sys

import data_files
import numpy as np
import pytest
import torch
from data_files import idx
from pydantic import ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.data import fashion_mnist, sources
from fedmef_dist.data.digits import DIGITS, load_digits
from fedmef_dist.data.sources import DataSettings, load_dataset
from fedmef_dist.data.synthetic import SyntheticSettings

FASHION_FILES = list(fashion_mnist.MD5)


def load(tmp_path, dataset, **keys):
    return load_dataset(DataSettings(dataset=dataset, root=str(tmp_path), **keys), seed=0)


# --- settings


@pytest.mark.parametrize(
    "key",
    [
        {"dataset": "digit"},
        {"download": "yes"},
        {"folder": "x"},
        {"root": ""},
        {"root": "a\0b"},
        {"synthetic": {"samples": 10**20}},
    ],
)
def test_wrong_settings_are_refused(key):
    with pytest.raises(ValidationError):
        DataSettings(**key)


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 27 TiB"), RuntimeError("can't allocate memory")])
def test_data_that_do_not_fit_into_memory_are_named(tmp_path, monkeypatch, error):
    def load_synthetic(*_):
        raise error

    monkeypatch.setattr(sources, "load_synthetic", load_synthetic)
    with pytest.raises(UserError, match=r"does not fit into this machine's memory\n.*data\.dataset=synthetic"):
        load(tmp_path, "synthetic")


def test_a_fault_that_is_not_memorys_stays_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "load_synthetic", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError):
        load(tmp_path, "synthetic")


def test_a_root_that_cannot_be_looked_into_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(UserError, match=r"data cannot be read|missing|no plays"):
        load(tmp_path / "a", "cifar10")
    with pytest.raises(UserError, match="the data cannot be read: File name too long") as caught:
        load("x" * 300, "folder")
    assert "x" * 300 in caught.value.where

    def closed(*_, **__):
        raise PermissionError(13, "Permission denied", "/closed/data")

    monkeypatch.setattr("fedmef_dist.data.sources.load_cached", closed)
    data_files.folder(tmp_path)
    with pytest.raises(UserError, match="the data cannot be read: Permission denied") as caught:
        load(tmp_path, "folder")
    assert caught.value.where == "/closed/data"


def test_the_home_of_nobody_is_named():
    with pytest.raises(UserError, match="home directory"):
        load("~nobody-of-this-name/data", "folder")


# --- digits


def test_digits_are_the_file_of_the_repository_they_come_from():
    content = DIGITS.read_bytes()
    assert hashlib.sha256(content).hexdigest() in DIGITS.with_suffix("").with_suffix(".md").read_text()
    data = load_digits()
    assert (len(data.train), len(data.test)) == (1442, 355)
    seen = [0] * 10
    train, test = iter(range(1442)), iter(range(355))
    for line in gzip.decompress(content).decode().splitlines():
        *pixels, label = map(int, line.split(","))
        seen[label] += 1
        split, row = (data.test, next(test)) if seen[label] % 5 == 0 else (data.train, next(train))
        assert split.labels[row] == label
        assert split.images[row].flatten().tolist() == [int(pixel * 255 / 16 + 0.5) for pixel in pixels]
    # As scikit-learn's load_digits gave them before they were bundled.
    assert data.digest == "c33fa33a0d40575e1facbf43ec43959513a82b9ad23df7788c11c20c92d88447"


def test_digits_are_normalised_and_the_split_ignores_the_seed():
    settings = DataSettings(dataset="digits")
    one, two = load_dataset(settings, seed=1), load_dataset(settings, seed=2)
    assert torch.equal(one.test.images, two.test.images)
    pixels = one.train.images / 255
    assert pixels.mean().item() == pytest.approx(one.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(one.std[0], abs=1e-4)


def test_digits_are_read_without_importing_what_takes_a_second():
    code = (
        "import sys; from fedmef_dist.data.sources import DataSettings, load_dataset; load_dataset(DataSettings(), 0);"
        "sys.exit(any(name in sys.modules for name in ('scipy', 'torchvision', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"1,2,3\n4,5,6\n", "64 values of 0 to 16"),
        (b"1,2\n3\n", "65 whole numbers"),
        (b"<html>\n", "65 whole numbers"),
        (b",".join([b"17"] * 64 + [b"1"]), "64 values of 0 to 16"),
        (b",".join([b"1"] * 64 + [b"10"]), "64 values of 0 to 16"),
    ],
)
def test_a_foreign_digits_file(tmp_path, text, found):
    (tmp_path / "digits.csv").write_bytes(text)
    with pytest.raises(UserError, match=rf"damaged: expected {found}[\s\S]*digits\.csv"):
        load_digits(tmp_path / "digits.csv")


# --- Fashion-MNIST


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """A folder with five training and three test images in the real format, half of the files compressed."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    folder = tmp_path / "fashion_mnist"
    folder.mkdir()
    values = np.arange(8 * 784).reshape(8, 28, 28) % 251
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(values[:5])))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.array([0, 9, 3, 1, 2])))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(values[5:]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array([4, 5, 6]))))
    return folder


def test_fashion_mnist_plain_and_compressed(tmp_path, fashion):
    data = load(tmp_path, "fashion_mnist")
    values = torch.arange(8 * 784).view(8, 1, 28, 28) % 251
    assert torch.equal(torch.cat([data.train.images, data.test.images]), values.to(torch.uint8))
    assert data.train.labels.tolist() == [0, 9, 3, 1, 2]
    assert data.test.labels.tolist() == [4, 5, 6]
    assert data.train.labels.dtype == torch.int64


def test_fashion_mnist_falls_back_to_the_system_package(tmp_path, fashion):
    fashion.rename(tmp_path / "debian")
    assert len(load(tmp_path, "fashion_mnist").train) == 5


def test_a_missing_fashion_mnist_file(tmp_path, fashion):
    (fashion / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is missing[\s\S]*data\.download=true"):
        load(tmp_path, "fashion_mnist")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3-ubyte", b"", "found an empty file"),
        ("t10k-images-idx3-ubyte", b"<html>", "found a start of 3c68746d"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((3, 28, 28)))[:-1], r"\(3, 28, 28\), .* found 2351 bytes"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((0, 28, 28))), "at least one, found 0 bytes"),
        ("t10k-images-idx3-ubyte", idx(np.zeros((3, 8, 8))), "28x28 pixels"),
        ("train-labels-idx1-ubyte", idx(np.zeros(4)), "expected 5 labels of 0 to 9, found 4"),
        ("train-labels-idx1-ubyte", idx(np.full(5, 10)), "labels up to 10"),
        ("train-images-idx3-ubyte.gz", b"plain", "a whole gzip file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(range(256)) * 9)[:-12], "a whole gzip file"),
    ],
)
def test_damaged_fashion_mnist_files(tmp_path, fashion, name, content, message):
    (fashion / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged: [\s\S]*{message}[\s\S]*{name}") as caught:
        load(tmp_path, "fashion_mnist")
    assert len(str(caught.value).splitlines()) == 3


def test_a_data_file_that_is_a_folder(tmp_path):
    from fedmef_dist.data.files import read_bytes

    with pytest.raises(UserError, match="a regular file"):
        read_bytes(tmp_path)
    with pytest.raises(UserError, match="is missing"):
        read_bytes(tmp_path / "nothing")


def serve(folder, server, monkeypatch):
    """Let the files of ``folder`` be what the data set's site offers."""
    server.mkdir()
    for path in list(folder.iterdir()):
        content = path.read_bytes() if path.suffix else gzip.compress(path.read_bytes())
        name = path.name.removesuffix(".gz")
        (server / f"{name}.gz").write_bytes(content)
        monkeypatch.setitem(fashion_mnist.MD5, name, hashlib.md5(content).hexdigest())
        path.unlink()
    folder.rmdir()
    monkeypatch.setattr(fashion_mnist, "URL", server.as_uri())


def test_fashion_mnist_download(tmp_path, fashion, monkeypatch):
    serve(fashion, tmp_path / "server", monkeypatch)
    assert len(load(tmp_path, "fashion_mnist", download=True).test) == 3
    assert sorted(path.name for path in fashion.iterdir()) == sorted(f"{name}.gz" for name in FASHION_FILES)


def test_a_download_with_another_sum_leaves_nothing_behind(tmp_path, fashion, monkeypatch):
    serve(fashion, tmp_path / "server", monkeypatch)
    monkeypatch.setitem(fashion_mnist.MD5, FASHION_FILES[0], "0" * 32)
    with pytest.raises(UserError, match="instead of 00000000"):
        load(tmp_path, "fashion_mnist", download=True)
    assert list(fashion.iterdir()) == []


def test_a_download_without_a_server(tmp_path, fashion, monkeypatch):
    serve(fashion, tmp_path / "server", monkeypatch)
    monkeypatch.setattr(fashion_mnist, "URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(UserError, match=r"cannot download[\s\S]*put it at .*train-images-idx3-ubyte\.gz yourself"):
        load(tmp_path, "fashion_mnist", download=True)


# --- synthetic


def test_synthetic_has_the_sizes_asked_for():
    sizes = SyntheticSettings(samples=50, test_samples=20, classes=5, channels=2, image_size=9)
    data = load_dataset(DataSettings(dataset="synthetic", synthetic=sizes), seed=0)
    assert (data.train.images.shape, data.test.images.shape) == ((50, 2, 9, 9), (20, 2, 9, 9))
    assert torch.bincount(data.train.labels).tolist() == [10] * 5
    assert data.train.images.is_contiguous(memory_format=torch.channels_last)


def test_synthetic_depends_on_the_seed_alone_and_can_be_learned():
    settings = DataSettings(dataset="synthetic", synthetic=SyntheticSettings(samples=400, test_samples=100))
    data, again, other = (load_dataset(settings, seed) for seed in (0, 0, 1))
    assert torch.equal(data.train.images, again.train.images)
    assert not torch.equal(data.train.images, other.train.images)
    means = torch.stack([data.train.images[data.train.labels == label].float().mean(0) for label in range(10)])
    nearest = torch.cdist(data.test.images.float().flatten(1), means.flatten(1)).argmin(dim=1)
    assert (nearest == data.test.labels).float().mean() > 0.95
