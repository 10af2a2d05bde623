import json
import os
import stat

import pytest

from fedmef_dist.base import atomic


def test_text_is_replaced_and_nothing_temporary_stays(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old, and longer\n")
    atomic.write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert list(tmp_path.iterdir()) == [path]


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
