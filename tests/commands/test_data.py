"""The command `data`, as a user types it."""

import base64
import io
import os
import re

import data_files
import pytest
import yaml
from PIL import Image

from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.data import data_command


@pytest.fixture
def look(tmp_path, monkeypatch, capsys):
    """`look(dataset, ...)` gives what the command prints, and its page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def run(dataset, *overrides):
        tree = {
            "name": "look",
            "data": {"dataset": dataset, "root": str(tmp_path)},
            "federation": {"clients": 3, "clients_per_round": 1},
        }
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree))
        data_command(tmp_path / "x.yaml", ["data.partition.min_samples=1", *overrides], None)
        return capsys.readouterr().out, (tmp_path / "runs/look-data/data.html").read_text()

    return run


def fact(text, name):
    return re.search(rf"^{name} {{2,}}(.*)$", text, re.MULTILINE).group(1)


def test_images_with_everything_that_is_odd(tmp_path, look):
    data_files.folder(tmp_path, count=10)
    train = tmp_path / "images/train"
    (train / "dog/copy.png").write_bytes((train / "cat/000.png").read_bytes())
    (train / "cat/.ipynb_checkpoints").mkdir()
    (train / "cat/.ipynb_checkpoints/x.png").write_bytes(b"")
    Image.new("RGB", (30, 30), "red").convert("L").save(train / "cat/flat.png")
    (tmp_path / "images/test/<b>").mkdir()
    with pytest.raises(UserError, match="a class, one of cat, dog"):
        look("folder")
    (tmp_path / "images/test/<b>").rmdir()
    text, page = look("folder", "data.folder.image_size=12")
    assert fact(text, "samples") == "22 for training, 20 for the test"
    assert fact(text, "passed over") == "1 hidden folders"
    assert fact(text, "constant").startswith("1 training images")
    assert fact(text, "two labels").startswith("2 images")
    assert re.search(r"^cat +11 +10 +1$", text, re.MULTILINE)
    assert fact(text, "nobody's") == "0 samples"
    assert re.search(r"^files +14 PNG, mode RGB, 30x20|^files .*PNG, mode RGB", text, re.MULTILINE)
    assert page.count('alt="plain images of class') == page.count('alt="augmented images of class') == 2
    assert str(train / "cat/000.png") in page
    assert str(train / "dog/copy.png") in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched


def test_a_text(tmp_path, look):
    data_files.shakespeare(tmp_path)
    text, page = look("shakespeare", "data.text.context=40", "data.partition.scheme=natural")
    assert fact(text, "files") == "2 plays"
    assert fact(text, "owners") == "4, of which 4 have samples"
    assert "labels a client" not in text
    assert "the king" in page


def test_clients_that_cannot_be_drawn_are_said_and_the_rest_is_shown(tmp_path, look):
    data_files.arrays(tmp_path)
    text, page = look("arrays", "federation.clients=50")
    assert fact(text, "clients").startswith("cannot be drawn: 50 clients with at least 1 samples")
    assert fact(text, "shape") == "(3, 8, 8), 4 classes"
    assert "Samples of each client" not in page


def test_names_of_files_are_text_on_the_page(tmp_path, look):
    for part in ("train", "test"):
        for number, name in enumerate(("<script>x", "b&b")):
            data_files.image(tmp_path / "images" / part / name / "1.png", 8, number)
    _, page = look("folder", "data.partition.scheme=iid", "federation.clients=2")
    assert "<script>" not in page
    assert "&lt;script&gt;x" in page


def test_names_of_folders_may_be_any_bytes(tmp_path, look):
    data_files.folder(tmp_path, count=10)
    for part in ("train", "test"):
        own = tmp_path / "images" / part
        (own / "cat").rename(own / os.fsdecode(b"caf\xe9\x1b[31m"))
    cat = own.parent / "train" / os.fsdecode(b"caf\xe9\x1b[31m")
    (cat / "copy.png").write_bytes((cat / "000.png").read_bytes())
    text, page = look("folder", "data.folder.image_size=12")
    assert re.search(r"^caf\\udce9\\x1b\[31m +11 +10 ", text, re.MULTILINE)
    assert r"caf\udce9\x1b[31m/copy.png" in page
    assert "\x1b" not in text + page


def test_a_page_that_cannot_be_written(tmp_path, look):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="the page cannot be written"):
        look("digits")


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_pictures_of_any_number_of_channels_are_grey(look, channels):
    sizes = {"samples": 8, "test_samples": 4, "classes": 2, "image_size": 4, "channels": channels}
    _, page = look("synthetic", *(f"data.synthetic.{key}={value}" for key, value in sizes.items()))
    tags = [tag for tag in re.findall(r"<img[^>]*>", page) if "images of class" in tag]
    pictures = [base64.b64decode(tag.partition("base64,")[2].partition('"')[0]) for tag in tags]
    assert len(pictures) >= 4
    assert {Image.open(io.BytesIO(picture)).mode for picture in pictures} == {"L"}
