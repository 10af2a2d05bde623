import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.init import init_command, starter_files


def test_the_folder_holds_every_configuration_and_example(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_command(tmp_path / "a" / "b")
    written = {path.relative_to(tmp_path / "a" / "b").as_posix() for path in (tmp_path / "a").rglob("*.*")}
    assert written == {name for name, _ in starter_files()}
    assert {
        "configs/quickstart.yaml",
        "configs/clusters/ethernet_cpu.yaml",
        "examples/own_method.py",
        "examples/own_method.yaml",
    } <= written
    shown = capsys.readouterr().out
    assert f"{len(written)} files are in {tmp_path / 'a' / 'b'}" in shown
    assert f"cd {tmp_path / 'a' / 'b'}\n" in shown
    assert "fedmef-dist run configs/quickstart.yaml" in shown


def test_here_there_is_no_folder_to_change_to(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_command(tmp_path)
    assert "cd " not in capsys.readouterr().out


def test_a_file_that_is_there_stays_as_it_is_and_nothing_is_written(tmp_path):
    mine = tmp_path / "examples" / "own_model.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"there already\nwhere: .*own_model\.py\nmend: name another folder"):
        init_command(tmp_path)
    assert mine.read_text() == "mine"
    assert [*tmp_path.rglob("*.*")] == [mine]


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the folder cannot be written"):
        init_command(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_looked_at_is_said(tmp_path):
    with pytest.raises(UserError, match="the folder cannot be written: File name too long"):
        init_command(tmp_path / (300 * "a"))
