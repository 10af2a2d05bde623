import errno
import json
import os
import stat
from pathlib import Path

import pytest

from fedmef_dist.base import atomic


def test_text_is_replaced_and_nothing_temporary_stays(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old, and longer\n")
    atomic.write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [".", "/", ".."])
def test_a_folder_is_no_file(tmp_path, monkeypatch, path):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(OSError, match=r"Is a directory|busy"):
        atomic.write_text(Path(path), "text")
    assert [*tmp_path.rglob("*")] == [tmp_path / "below"]


def test_a_failure_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_synced_before_the_name_changes_and_the_directory_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace

    def noted_fsync(handle):
        events.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(self, target):
        events.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(type(tmp_path), "replace", noted_replace)
    atomic.write_text(tmp_path / "file.txt", "text")
    assert events == ["file", "rename", "directory"]


def test_a_file_system_that_syncs_no_directory_takes_files_nevertheless(tmp_path, monkeypatch):
    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    number = errno.EINVAL
    atomic.make_directory(tmp_path / "a" / "b")
    atomic.write_text(tmp_path / "a" / "b" / "file", "text")
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        atomic.write_text(tmp_path / "a" / "b" / "file", "text")


def test_the_file_has_the_permissions_that_open_would_give(tmp_path):
    (tmp_path / "plain").write_text("")
    atomic.write_text(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_comes_back_and_refuses_what_json_has_not(tmp_path):
    path = tmp_path / "value.json"
    value = {"a/b": [1, 2.5, None], "é": "ü"}
    atomic.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_what_a_killed_writer_leaves_is_known_by_its_name(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        for how in ("unlink", "replace"):
            patch.setattr(type(tmp_path), how, lambda *_, **__: None)
        atomic.write_text(tmp_path / "config.yaml", "text")  # neither renamed nor removed
    (left,) = tmp_path.iterdir()
    assert atomic.is_left_over(left.name)
    for name in (
        "config.yaml",
        ".config.yaml.tmp",
        ".mine.0123456789ab",
        "notes.0123456789ab.tmp",
        ".x.0123456789aB.tmp",
    ):
        assert not atomic.is_left_over(name)


def test_new_directories_are_synced_in_the_ones_above_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic, "sync_directory", synced.append)
    atomic.make_directory(tmp_path / "runs" / "one")
    assert (tmp_path / "runs" / "one").is_dir()
    assert set(synced) == {tmp_path, tmp_path / "runs"}
    synced.clear()
    atomic.make_directory(tmp_path / "runs" / "one")  # the process that made it may have been killed just then
    assert synced == [tmp_path / "runs"]


def test_a_folder_above_that_may_not_be_read_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic, "sync_directory", refuse)
    atomic.make_directory(tmp_path / "one")
    assert (tmp_path / "one").is_dir()
