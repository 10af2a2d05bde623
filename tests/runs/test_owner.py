"""One owner of a run directory: on this host by the kernel, on others by a heartbeat."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from fedmef_dist.base.atomic import write_bytes
from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.base.lock_file import LockFile
from fedmef_dist.base.regular import is_regular
from fedmef_dist.runs import owner as module
from fedmef_dist.runs import owner_record
from fedmef_dist.runs.directory import claim
from fedmef_dist.runs.owner import Owner, Progress
from fedmef_dist.runs.owner_record import OwnerWatch, ProcessIdentity, Record, Seen, here, lives, look
from fedmef_dist.runs.succession import Succession

HOLD = """
import pathlib, sys, time
from fedmef_dist.runs.directory import claim
with claim(pathlib.Path(sys.argv[1]), 12) as owner:
    owner.begin(8)
    print("held", flush=True)
    time.sleep(60)
"""
ME = ProcessIdentity(
    host="n1", boot="b1", pid_namespace="ns1", pid=os.getpid(), started=here().started, job="6", restarts=1
)


@contextmanager
def another_process(run_dir, job="6"):
    """A process that owns the directory."""
    run_dir.mkdir(exist_ok=True)
    environ = {**os.environ, "SLURM_JOB_ID": job}
    with subprocess.Popen([sys.executable, "-c", HOLD, run_dir], stdout=subprocess.PIPE, env=environ) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def record(**changes):
    now = time.time()
    return Record(**{**ME.model_dump(), "token": "ab", "heartbeat": now, "progress": now, **changes})


def write(run_dir, **changes):
    # Whole, as owners do: whoever looks while it is being written sees a record.
    write_bytes(run_dir / "owner.json", record(**changes).model_dump_json().encode(), durable=False)


def state(run_dir):
    return json.loads((run_dir / "owner.json").read_text())["state"]


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats of hundredths of a second, and little patience."""
    monkeypatch.setattr(owner_record, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(owner_record, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LEASE_SECONDS", 1.0)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system on which the kernel has no locks."""

    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


# --- a run's life


def test_the_record_tells_of_the_run_and_of_its_end(tmp_path, quick):
    with claim(tmp_path, 12) as owner:
        owner.begin(3)
        Progress(owner).log({"round": 4})
        while (seen := look(tmp_path).record).round != 4:
            time.sleep(0.01)
        assert (seen.pid, seen.started, seen.rounds, seen.state) == (os.getpid(), here().started, 12, "running")
        owner.finished = True
    assert (look(tmp_path).record.round, state(tmp_path)) == (4, "finished")


def begun_and_interrupted(run_dir):
    with claim(run_dir) as owner:
        owner.begin(0)
        raise KeyboardInterrupt


def refused(run_dir):
    with claim(run_dir):
        assert state(run_dir) == "running"
        raise UserError("wrong")


def test_what_does_not_come_to_its_end_has_stopped(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        begun_and_interrupted(tmp_path)
    assert state(tmp_path) == "stopped"


def test_a_start_that_is_refused_leaves_the_record_as_it_was(tmp_path):
    with pytest.raises(UserError, match="wrong"):
        refused(tmp_path)
    assert not (tmp_path / "owner.json").exists()
    write(tmp_path, state="finished")
    before = (tmp_path / "owner.json").read_bytes()
    with pytest.raises(UserError, match="wrong"):
        refused(tmp_path)
    assert (tmp_path / "owner.json").read_bytes() == before


def test_the_heartbeat_ends_with_its_owner(tmp_path, quick):
    with claim(tmp_path) as owner:
        owner.begin(0)
        thread = next(thread for thread in threading.enumerate() if thread.name == "owner")
        assert thread.daemon
    assert not thread.is_alive()


def test_the_heartbeat_goes_on_where_the_disk_is_full(tmp_path, quick, monkeypatch):
    with claim(tmp_path) as owner:
        owner.begin(0)

        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module, "write_bytes", full)
            mark, deadline = look(tmp_path).mark, time.monotonic() + 60
            while look(tmp_path).mark == mark:
                assert time.monotonic() < deadline
                time.sleep(0.02)


# --- a second start


def test_a_second_start_is_refused_and_told_whose_the_directory_is(tmp_path):
    with another_process(tmp_path) as process:
        with pytest.raises(UserError) as caught:
            claim(tmp_path)
        what, where, mend = str(caught.value).split("\n")
        name = os.uname().nodename
        assert what.startswith(f"another run is writing here: job 6 on {name}, pid {process.pid}, round ")
        assert what.endswith(" s ago")
        assert where == f"where: {tmp_path}"
        assert "--run-dir" in mend


def test_a_second_start_in_the_same_process_is_refused(tmp_path):
    with claim(tmp_path), pytest.raises(UserError, match=f"another run is writing here: .*pid {os.getpid()}"):
        claim(tmp_path)
    with claim(tmp_path):
        pass


def test_a_killed_owner_is_followed_at_once(tmp_path):
    with another_process(tmp_path) as process:
        process.kill()
        process.wait()
        began = time.monotonic()
        with claim(tmp_path):
            assert time.monotonic() - began < owner_record.SILENCE_SECONDS / 2
        assert state(tmp_path) == "running"  # as it was left


def test_a_stopped_process_still_owns_its_directory(tmp_path):
    with another_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(UserError, match="another run is writing here"):
            claim(tmp_path)


def test_a_removed_lock_file_does_not_open_the_door(tmp_path):
    with another_process(tmp_path):
        (tmp_path / "owner.lock").unlink()
        with pytest.raises(UserError, match="another run is writing here"):
            claim(tmp_path)


RACE = """
import os, pathlib, sys
from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.directory import claim
path, start = pathlib.Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
os.read(start, 1)  # until the other end is closed, for all at the same moment
try:
    with claim(path) as owner:
        owner.begin(0)
        print("won", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error.what[:28], flush=True)
"""


def test_of_starts_at_the_same_moment_exactly_one_wins(tmp_path):
    start, gate = os.pipe()
    command = [sys.executable, "-c", RACE, tmp_path, str(start)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    starts = [subprocess.Popen(command, pass_fds=[start], **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in starts] == ["ready\n"] * 3
    os.close(gate)
    said = sorted(process.stdout.readline().strip() for process in starts)
    for process in starts:
        process.communicate()
    os.close(start)
    assert said == ["another run is writing here:"] * 2 + ["won"]


@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("precious")], ids=["FIFO", "link"])
@pytest.mark.parametrize("name", ["owner.json", "owner.lock"])
def test_what_is_no_regular_file_is_refused_and_left_alone(tmp_path, name, lay):
    (tmp_path / "precious").write_text("mine")
    lay(tmp_path / name)
    with pytest.raises(UserError):
        claim(tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_lock_of_a_lost_host_is_waited_for_although_it_left_no_record(tmp_path, quick, monkeypatch):
    lock, now = LockFile(tmp_path / "owner.lock"), [0.0]
    assert lock.take()

    def sleep(seconds):
        now[0] += 10.0
        if now[0] > 100.0:  # the file server's lease
            lock.release()

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_LEASE_SECONDS", 150.0)
    with claim(tmp_path):
        assert now[0] == 110.0


# --- without locks of the kernel


def test_without_locks_a_live_process_of_this_host_is_recognised(tmp_path, no_locks, quick):
    with another_process(tmp_path) as process:
        with pytest.raises(UserError, match=f"pid {process.pid}"):
            claim(tmp_path)
        process.kill()
        process.wait()
        with claim(tmp_path):
            assert look(tmp_path).record.pid == os.getpid()


def test_a_heartbeat_from_elsewhere_that_moves_is_alive(tmp_path, no_locks, quick, monkeypatch):
    monkeypatch.setattr(owner_record, "SILENCE_SECONDS", 60.0)
    monkeypatch.setattr(module, "_LEASE_SECONDS", 150.0)
    write(tmp_path, host="n9", boot="b9")
    ended = threading.Event()

    def beat():
        while not ended.wait(0.02):
            write(tmp_path, host="n9", boot="b9")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="another run is writing here: job 6 on n9"):
            claim(tmp_path)
    finally:
        ended.set()
        thread.join()


NO_PROCESS = record(**here().model_dump()).model_copy(update={"pid": 2**31}).model_dump_json().encode()


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff" * 100, b"[" * 60_000, NO_PROCESS])
def test_a_heartbeat_that_stands_still_is_dead_whatever_its_clock_says(tmp_path, quick, content):
    write(tmp_path, host="n9", boot="b9", job=None, heartbeat=time.time() + 9e6)
    if content is not None:
        (tmp_path / "owner.json").write_bytes(content)
    began = time.monotonic()
    with claim(tmp_path):
        assert time.monotonic() - began >= (0.3 if content is None else 0.06)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    for name in ("owner.json", "config.yaml", "metrics.jsonl"):
        (tmp_path / f".{name}.0123456789ab.tmp").write_text("half")
    (tmp_path / ".mine.tmp").write_text("mine")
    with claim(tmp_path):
        assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [".mine.tmp"]


def test_a_start_that_has_an_old_record_in_its_cache_follows_nobody(tmp_path, no_locks, quick, monkeypatch):
    monkeypatch.setattr(owner_record, "SILENCE_SECONDS", 60.0)
    nothing = look(tmp_path)
    with claim(tmp_path) as owner:
        owner.begin(0)
        monkeypatch.setattr(module, "look", lambda run_dir: nothing)  # as a host sees it that has asked a moment ago
        with pytest.raises(UserError, match="another run is writing here"):
            claim(tmp_path)
        monkeypatch.undo()
        owner.reach(1)


def test_a_start_that_was_killed_before_its_record_is_waited_for_and_then_passed(tmp_path, quick):
    follower = Succession(tmp_path)
    assert follower.take(look(tmp_path), 0.0)  # and nothing more comes of it
    start = time.monotonic()
    with claim(tmp_path) as owner:
        owner.begin(0)
        assert time.monotonic() - start >= owner_record.SILENCE_SECONDS
        assert follower.is_overtaken()


def test_whoever_took_too_long_to_write_its_record_is_refused(tmp_path, quick, monkeypatch):
    def take(succession, seen, now):
        assert real(succession, seen, now)
        (tmp_path / ".owner-after-nobody-1").touch()  # another start has given this one up
        return True

    real = Succession.take
    monkeypatch.setattr(Succession, "take", take)
    with pytest.raises(UserError, match="another run is writing here"):
        claim(tmp_path)
    assert not (tmp_path / "owner.json").exists()


def test_a_refused_start_may_be_followed_at_once(tmp_path):
    for _ in range(2):
        with claim(tmp_path):
            pass  # refused before it began
    with claim(tmp_path) as owner:
        owner.begin(0)
    token = look(tmp_path).record.token
    with claim(tmp_path):
        pass
    with claim(tmp_path) as owner:
        owner.begin(0)
    assert [path.name for path in tmp_path.glob(".owner-*")] == [f".owner-after-{token}-0"]


def test_a_start_that_could_not_write_its_record_is_not_waited_for(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", full)
        for _ in range(4):
            with pytest.raises(UserError, match="the run directory cannot be written: Disk quota exceeded"):
                claim(tmp_path)
    start = time.monotonic()
    with claim(tmp_path) as owner:
        owner.begin(0)
    assert time.monotonic() - start < owner_record.SILENCE_SECONDS / 2


def test_a_record_that_was_removed_by_hand_is_not_waited_for(tmp_path):
    for _ in range(2):
        with claim(tmp_path) as owner:
            owner.begin(0)
        (tmp_path / "owner.json").unlink()


def test_who_followed_whom_is_forgotten_after_an_hour(tmp_path):
    (tmp_path / ".owner-after-ab-0").touch()
    os.utime(tmp_path / ".owner-after-ab-0", (0, 0))
    with claim(tmp_path) as owner:
        owner.begin(0)
        assert [path.name for path in tmp_path.glob(".owner-*")] == [".owner-after-nobody-0"]


def test_who_finds_anothers_record_before_it_begins_is_refused(tmp_path):
    with claim(tmp_path) as owner:
        write(tmp_path, token="cd", host="n9", boot="b9")
        with pytest.raises(UserError, match="another run is writing here: job 6 on n9"):
            owner.begin(0)
    assert look(tmp_path).record.token == "cd"  # which is left alone


# --- what is lost


def lost(owner, harm):
    """Does harm until the heartbeat notices, which may come in between."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        harm()
        time.sleep(0.03)
        owner.check()


def test_who_is_taken_over_ends_and_leaves_the_new_owners_record_alone(tmp_path, quick):
    with claim(tmp_path) as owner:
        owner.begin(0)
        with pytest.raises(FilesLostError, match=r"taken the run directory .* over: job 6 on n9"):
            lost(owner, lambda: write(tmp_path, token="cd", host="n9", boot="b9"))
    assert look(tmp_path).record.token == "cd"


def test_without_a_heartbeat_the_next_round_notices(tmp_path, monkeypatch):
    monkeypatch.setattr(Owner, "_beat", lambda self: None)  # its thread has died
    with claim(tmp_path) as owner:
        owner.begin(0)
        write(tmp_path, token="cd", host="n9", boot="b9")
        with pytest.raises(FilesLostError, match="over: job 6 on n9"):
            owner.reach(1)


def test_a_fifo_in_the_records_place_is_replaced_by_the_next_heartbeat(tmp_path, quick):
    with claim(tmp_path) as owner:
        owner.begin(0)
        (tmp_path / "owner.json").unlink()
        with suppress(FileExistsError):
            os.mkfifo(tmp_path / "owner.json")
        deadline = time.monotonic() + 60
        while not is_regular(tmp_path / "owner.json"):
            owner.reach(1)
            assert time.monotonic() < deadline


def test_a_removed_directory_is_noticed_and_not_made_again(tmp_path, quick):
    with claim(tmp_path / "run") as owner:
        owner.begin(0)
        with pytest.raises(FilesLostError, match="was removed"):
            lost(owner, lambda: shutil.rmtree(tmp_path / "run", ignore_errors=True))
    assert not (tmp_path / "run").exists()


def test_a_replaced_directory_is_noticed(tmp_path):
    with claim(tmp_path / "run") as owner:  # whose heartbeat is seconds away: one that has looked would write
        owner.begin(0)
        (tmp_path / "run").rename(tmp_path / "old")
        (tmp_path / "run").mkdir()
        with pytest.raises(FilesLostError, match="was replaced"):
            owner.reach(1)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_removed_record_is_written_again(tmp_path, quick):
    with claim(tmp_path) as owner:
        owner.begin(0)
        (tmp_path / "owner.json").unlink()
        deadline = time.monotonic() + 60
        while look(tmp_path).record is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)


# --- who lives


@pytest.mark.parametrize(
    ("changes", "locked", "alive"),
    [
        ({}, False, True),
        ({}, True, False),  # an owner of this process that has let go
        ({"started": 1}, False, False),  # another process with the number of a dead one
        ({"pid": 2**22 + 1}, False, False),
        ({"pid": 2**31 - 1}, False, False),
        ({"pid": 1, "started": None}, True, True),
        ({"pid_namespace": "ns2"}, True, False),  # a container of this host would hold the lock
        ({"pid_namespace": "ns2"}, False, None),
        ({"host": "n2", "boot": "b2"}, True, None),
        ({"host": "n2", "boot": "b2", "restarts": 0}, True, False),  # requeued to another node
        ({"host": "n2", "boot": "b2", "restarts": 0, "job": "7"}, True, None),
        ({"host": "n2", "boot": "b2", "restarts": 2}, True, None),
        ({"boot": "b0", "heartbeat": 1000.0}, True, False),  # this host before it was started again
        ({"boot": "b0"}, True, None),  # a namesake
        ({"host": "n2", "boot": "b2", "job": None, "restarts": 0}, True, None),
    ],
)
def test_what_can_be_told_of_a_process_from_its_record(changes, locked, alive):
    assert lives(record(**changes), ME, locked) is alive


def test_a_dead_process_that_nobody_has_collected_is_dead():
    process = subprocess.Popen(["true"])
    while owner_record._start_of(process.pid) not in (0, None):
        time.sleep(0.01)
    assert lives(record(pid=process.pid), ME, False) is False
    process.wait()


def test_a_watch_compares_what_it_sees_on_its_own_clock():
    watch, elsewhere = OwnerWatch(ME), record(host="n2", boot="b2", job=None)
    assert watch.judge(Seen(None, None, None), 0.0, True) == "free"
    assert watch.judge(Seen(elsewhere, "mark", b""), 100.0, True) == "unknown"
    assert watch.judge(Seen(elsewhere, "mark", b""), 159.9, True) == "unknown"
    assert watch.judge(Seen(elsewhere, "mark", b""), 160.0, True) == "dead"
    assert watch.judge(Seen(elsewhere, "other", b""), 160.0, True) == "alive"
    assert OwnerWatch(ME).judge(Seen(None, "mark", b"x"), 0.0, True) == "unknown"
    assert watch.judge(Seen(record(state="stopped"), "mark", b""), 100.0, True) == "free"


def test_a_job_is_named_and_its_restarts_counted(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    place = here()
    assert (place.job, place.restarts) == ("17", 2)
    assert str(place) == f"job 17 on n1, pid {os.getpid()}"
    monkeypatch.setenv("SLURM_JOB_ID", "\x1b[2J")
    assert here().job is None


def test_the_lock_of_a_lost_host_is_waited_for(tmp_path, quick, monkeypatch):
    """The file server still keeps it, although Slurm has started the job anew: it lets go after a while."""
    monkeypatch.setattr(module, "_LEASE_SECONDS", 60.0)
    lock = module.LockFile(tmp_path / "owner.lock")
    assert lock.take()
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write(tmp_path, host="n2", boot="b2", restarts=0)
    threading.Timer(0.3, lock.release).start()
    with claim(tmp_path) as owner:
        owner.begin(0)
        assert look(tmp_path).record.restarts == 1


def test_a_lock_that_nobody_lets_go_of_ends_the_start(tmp_path, quick):
    lock = module.LockFile(tmp_path / "owner.lock")
    assert lock.take()
    with pytest.raises(UserError, match=r"^another run is writing here\n"):
        claim(tmp_path)
