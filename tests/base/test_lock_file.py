import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from fedmef_dist.base.lock_file import LockFile


def test_one_of_two_has_the_lock_and_the_other_gets_it_afterwards(tmp_path):
    one, other = LockFile(tmp_path / "lock"), LockFile(tmp_path / "lock")
    assert one.take()
    assert one.held
    assert not other.take()
    assert not other.held
    one.release()
    assert other.take()
    other.release()
    assert (tmp_path / "lock").read_bytes() == b""


HOLD = """
import pathlib, sys, time
from fedmef_dist.base.lock_file import LockFile
lock = LockFile(pathlib.Path(sys.argv[1]))
assert lock.take()
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_lets_go(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "lock"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        lock = LockFile(tmp_path / "lock")
        assert not lock.take()
        holder.kill()
    assert lock.take()


FORK = """
import os, pathlib, sys, time
from fedmef_dist.base.lock_file import LockFile
lock = LockFile(pathlib.Path(sys.argv[1]))
assert lock.take()
if os.fork() == 0:
    print("forked", flush=True)
    time.sleep(20)
    os._exit(0)
time.sleep(60)
"""


def test_a_forked_child_does_not_hold_the_lock_of_its_dead_parent(tmp_path):
    command = [sys.executable, "-c", FORK, tmp_path / "lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        try:
            assert parent.stdout.readline() == "forked\n"
            lock = LockFile(tmp_path / "lock")
            assert not lock.take()
            parent.kill()
            parent.wait()
            assert lock.take()
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_link_is_not_followed_and_its_target_not_emptied(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        LockFile(tmp_path / "lock").take()
    os.link(tmp_path / "precious", tmp_path / "hard")
    assert LockFile(tmp_path / "hard").take()
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="lock is not a regular file"):
        LockFile(tmp_path / "lock").take()


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def slow(handle, how):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(handle)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    lock = LockFile(tmp_path / "lock")
    assert lock.take()
    assert len(calls) == 2
    assert not LockFile(tmp_path / "lock").take()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch, number):
    def refuse(handle, how):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = LockFile(tmp_path / "lock")
    assert lock.take()
    assert not lock.held


def test_any_other_trouble_is_not_hidden(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"):
        LockFile(tmp_path / "lock").take()
