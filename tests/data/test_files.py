"""Files that are not what they should be, and archives that are not either."""

import gzip
import io
import os
import socket
import tarfile
import threading
import zipfile

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.archives import unpack
from fedmef_dist.data.files import exclusive, fetch, read_bytes


def test_a_pipe_a_folder_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "pipe", tmp_path / "folder", type(tmp_path)("/dev/zero")):
        with pytest.raises(UserError, match="a regular file"):
            read_bytes(path)


def test_a_file_has_a_limit_compressed_or_not(tmp_path):
    (tmp_path / "x").write_bytes(bytes(101))
    (tmp_path / "x.gz").write_bytes(gzip.compress(bytes(10_000)))
    assert read_bytes(tmp_path / "x", limit=101) == bytes(101)
    for name in ("x", "x.gz"):
        with pytest.raises(UserError, match="at most 100 bytes"):
            read_bytes(tmp_path / name, limit=100)


def test_links_are_followed_and_those_to_nothing_named(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    assert read_bytes(tmp_path / "link") == b"1"
    (tmp_path / "x").unlink()
    with pytest.raises(UserError, match="a link leads nowhere"):
        read_bytes(tmp_path / "link")
    with pytest.raises(UserError, match="missing"):
        read_bytes(tmp_path / "x")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf", b"no HTTP\r\n\r\n", b""]
)
def test_an_answer_that_breaks_off_is_no_file(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UserError, match="cannot download a data file"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/x", tmp_path / "x", "")
        thread.join()
    assert not [*tmp_path.iterdir()]


def test_exclusive_gives_whether_the_folder_can_be_written(tmp_path):
    with exclusive(tmp_path / "new") as writable:
        assert writable
    (tmp_path / "file").write_text("")
    with exclusive(tmp_path / "file") as writable:
        assert not writable


def tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("name", ["", ".", "./", "/"])
def test_a_member_without_a_name_leaves_nothing_behind(tmp_path, name):
    tar(tmp_path / "a.tar.gz", (name, b"x"), ("good", b"y"))
    unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar.gz", "good", "set"]


def test_a_new_folder_is_there_with_all_files_at_once(tmp_path, monkeypatch):
    """Whoever looks without a lock finds none of them or all."""
    tar(tmp_path / "a.tar.gz", ("set/train/0.png", b"x"), ("set/test/0.png", b"y"))
    with monkeypatch.context() as patch:
        patch.setattr("fedmef_dist.data.archives.shutil.copytree", lambda *_, **__: pytest.fail("file by file"))
        unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    (tmp_path / "set/test/0.png").unlink()
    (tmp_path / "set/own").write_bytes(b"z")
    unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    found = {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*")}
    assert found == {"own", "test", "test/0.png", "train", "train/0.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "set"]


def test_an_archive_has_a_limit(tmp_path):
    tar(tmp_path / "a.tar.gz", ("one", bytes(600)), ("two", bytes(600)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(100_000))
    for name in ("a.tar.gz", "a.zip"):
        with pytest.raises(UserError, match="unpacks to a sensible size"):
            unpack(tmp_path / name, tmp_path / "set", limit=1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "a.zip"]
    unpack(tmp_path / "a.tar.gz", tmp_path / "set", limit=1200)


@pytest.mark.parametrize("members", [[("a", b"x"), ("a/b", b"y")], [("a\udce9", b"x"), ("a" * 300, b"y")]])
def test_members_in_each_others_way_are_refused_and_nothing_stays(tmp_path, members):
    tar(tmp_path / "a.tar.gz", *members)
    with pytest.raises(UserError, match=r"cannot unpack an archive|a whole tar"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_an_encrypted_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", b"secret")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[6] |= 1  # the flag of encryption, in the file's head and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="a whole tar"):
        unpack(tmp_path / "a.zip", tmp_path / "set")
