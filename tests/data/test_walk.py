import os

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.walk import Walk


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def test_what_systems_and_editors_leave_is_passed_over_and_counted(tmp_path):
    touch(tmp_path, "a/1.png", "a/.ipynb_checkpoints/1.png", "a/@eaDir/1.png", "__MACOSX/a/1.png", "lost+found/x")
    touch(tmp_path, "a/._1.png", "a/.DS_Store", "a/Thumbs.db", "b/2.png")
    walk = Walk()
    assert [path.name for path in walk.files(tmp_path)] == ["1.png", "2.png"]
    assert walk.skipped == {
        "hidden folders": 1,
        "hidden files": 2,
        "folders named @eaDir": 1,
        "folders named __MACOSX": 1,
        "folders named lost+found": 1,
        "files named Thumbs.db": 1,
    }


def test_linked_folders_and_files_are_followed(tmp_path):
    touch(tmp_path, "far/1.png", "far/deep/2.png", "here/3.png")
    (tmp_path / "here/link").symlink_to(tmp_path / "far")
    (tmp_path / "here/4.png").symlink_to(tmp_path / "far/1.png")
    found = [str(path.relative_to(tmp_path)) for path in Walk().files(tmp_path / "here")]
    assert found == ["here/3.png", "here/4.png", "here/link/1.png", "here/link/deep/2.png"]


@pytest.mark.parametrize("look", [Walk.files, Walk.folders])
def test_a_link_to_nothing_is_named(tmp_path, look):
    (tmp_path / "gone").symlink_to(tmp_path / "annex/object")
    with pytest.raises(UserError, match="a link leads nowhere") as caught:
        look(Walk(), tmp_path)
    assert caught.value.where == f"{tmp_path / 'gone'} -> {tmp_path / 'annex/object'}"


def test_a_link_that_leads_back_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/up").symlink_to(tmp_path)
    with pytest.raises(UserError, match="leads back above itself"):
        Walk().files(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/self").symlink_to("self")
    with pytest.raises(UserError, match="a folder cannot be read"):
        Walk().files(tmp_path / "b")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="a pipe, socket or device"):
        Walk().files(tmp_path)


def test_only_folders_are_classes_and_loose_files_are_counted(tmp_path):
    touch(tmp_path, "b/1.png", "a/1.png", "README.md", ".git/config")
    walk = Walk()
    assert walk.folders(tmp_path) == ["a", "b"]
    assert walk.skipped == {"hidden folders": 1, "files outside of the classes' folders": 1}


def test_files_by_suffix(tmp_path):
    touch(tmp_path, "b.json", "a.json", "._a.json", "c.txt")
    assert [path.name for path in Walk().named(tmp_path, ".json")] == ["a.json", "b.json"]
    assert Walk().named(tmp_path / "nowhere", ".json") == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fedmef_dist.data.walk.os.scandir", closed)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        Walk().files(tmp_path)
