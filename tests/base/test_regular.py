import os
import socket

import pytest

from fedmef_dist.base.regular import is_regular, read_regular


def test_a_file_below_a_directory_is_read_up_to_the_limit(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"0123456789")
    assert read_regular(tmp_path, "a/b/file", 10) == b"0123456789"
    with pytest.raises(OSError, match="larger than 9 bytes"):
        read_regular(tmp_path, "a/b/file", 9)
    assert read_regular(tmp_path, "a/b/file", 3, tail=True) == b"789"
    assert read_regular(tmp_path, "a/b/file", 30, tail=True) == b"0123456789"


def listen(path):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


@pytest.mark.parametrize(
    ("lay", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "not a regular file"),
        (listen, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "a link, which is not followed"),
        (lambda path: path.symlink_to(path.parent / "real"), "a link, which is not followed"),
        (lambda path: None, "No such file"),
    ],
    ids=["FIFO", "directory", "socket", "device", "link", "nothing"],
)
def test_anything_else_is_refused_without_waiting(tmp_path, monkeypatch, lay, reason):
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    (tmp_path / "real").write_text("x")
    lay(tmp_path / "file")
    with pytest.raises(OSError, match=reason):
        read_regular(tmp_path, "file", 100)
    assert not is_regular(tmp_path / "file")
    assert is_regular(tmp_path / "real")


def test_no_link_below_the_directory_is_followed_but_the_directory_may_be_one(tmp_path):
    (tmp_path / "run" / "inside").mkdir(parents=True)
    (tmp_path / "run" / "inside" / "file").write_text("x")
    (tmp_path / "run" / "link").symlink_to("inside")
    (tmp_path / "latest").symlink_to("run")
    assert read_regular(tmp_path / "latest", "inside/file", 9) == b"x"
    with pytest.raises(OSError, match="a link, which is not followed"):
        read_regular(tmp_path / "run", "link/file", 9)
