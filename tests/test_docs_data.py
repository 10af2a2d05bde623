"""The example of docs/data.md, as a reader would follow it."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from fedmef_dist.cli import main

TEXT = (Path(__file__).parent.parent / "docs" / "data.md").read_text()


def block(language):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return found


def test_the_example_of_own_arrays_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})
    Path("own.yaml").write_text(block("yaml"))
    printed = []
    for line in block("sh").splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code in (0, None)
        printed.append(capsys.readouterr().out)
    assert "400" not in printed[0]  # a fifth is held out
    assert re.search(r"^samples +320 for training, 80 for the test$", printed[0], re.MULTILINE)
    assert re.search(r"^clients +10$", printed[0], re.MULTILINE)
    assert Path("runs/own-data/data.html").is_file()
    assert "3 rounds, accuracy" in printed[1]


def test_every_key_that_the_page_names_is_there():
    from fedmef_dist.config import Config, known_keys

    known = set(known_keys(Config))
    named = set(re.findall(r"`(data\.[a-z_]+(?:\.[a-z_]+)*)", TEXT))
    assert named
    assert named - known == set()
