import signal
import time

import pytest
import torch.distributed as dist

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster import failure, watch
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.transport import PeerLostError

WRONG = UserError("no such file: mnist", where="data.root", mend="set data.download=true")

SCRIPT = """
import os, signal, sys, time
import torch
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.group import RuntimeSettings, open_group
from fedmef_dist.base.errors import UserError

environment = detect(os.environ)
with ends_together(environment):
    if sys.argv[1] == "before":
        raise UserError("wrong input", where="here")
    settings = RuntimeSettings(backend=sys.argv[2], timeout=float(sys.argv[3]))
    with open_group(environment, settings) as group, ends_together(group):
        word = torch.zeros(3)
        group.all_reduce(word)
        match sys.argv[1], group.rank:
            case "everywhere", _:
                raise UserError("wrong input", where="here")
            case "input of 1", 1:
                raise UserError("wrong input", where="here")
            case "fault of 1", 1:
                raise ValueError("broken")
            case "kill 1", 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "sleep 1", 1:
                time.sleep(170)
            case "stop", _:
                sys.exit(75)
        group.all_reduce(word)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "fails.py"
    path.write_text(SCRIPT)
    return path


def rank(number, store=None, size=2):
    environment = Environment("torchrun", number, size, number, size, "localhost", 1)
    return environment if store is None else Group(environment, "cpu", "gloo", store=store)


def end(place, error):
    with pytest.raises(SystemExit) as left, ends_together(place):
        raise error
    return left.value.code


@pytest.fixture(autouse=True)
def _restore_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_failing_rank_keeps_its_status_and_its_silence_when_the_launcher_ends_it(capsys, monkeypatch):
    monkeypatch.setattr(failure._Voice, "wait_for_server", lambda voice: signal.raise_signal(signal.SIGTERM))
    assert end(rank(1, dist.HashStore()), WRONG) == 2
    assert capsys.readouterr().err == ""


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(failure, "_PATIENCE_SECONDS", 0.1)


@pytest.mark.parametrize(
    ("error", "status"),
    [(WRONG, 2), (ValueError("oops"), 1), (PeerLostError("gone"), 1), (KeyboardInterrupt(), 130)],
)
def test_every_kind_of_error_has_its_status(error, status):
    assert end(rank(0), error) == status


@pytest.mark.parametrize("status", [0, 2, 75])
def test_system_exit_passes_through(status, capsys):
    assert end(rank(0), SystemExit(status)) == status
    assert capsys.readouterr().err == ""


def test_a_body_that_succeeds_is_left_alone(capsys):
    with ends_together(rank(0)):
        pass
    assert capsys.readouterr().err == ""


def test_wrong_input_is_shown_as_it_is(capsys):
    end(rank(0), WRONG)
    assert capsys.readouterr().err == f"{WRONG}\n"


def test_a_fault_is_shown_with_its_traceback_behind_rank_and_host(capsys, monkeypatch):
    monkeypatch.setattr(failure.socket, "gethostname", lambda: "n7")
    end(rank(1), ValueError("oops"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rank 1 of 2 on n7: Traceback (most recent call last):"
    assert lines[-1] == "rank 1 of 2 on n7: ValueError: oops"


def test_the_loss_of_a_peer_takes_one_line(capsys):
    end(rank(1), PeerLostError("all_reduce: Connection closed by peer"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("stopped, a peer is gone: all_reduce: Connection closed by peer")


def test_one_rank_speaks_for_all_that_share_its_store(capsys, impatient):
    store = dist.HashStore()
    assert end(rank(0, store), WRONG) == 2
    assert end(rank(1, store), WRONG) == 2
    assert capsys.readouterr().err == f"{WRONG}\n"


def test_the_second_fault_is_only_mentioned(capsys):
    store = dist.HashStore()
    end(rank(1, store), ValueError("first"))
    capsys.readouterr()
    end(rank(0, store), KeyError("second"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("stopped as well: KeyError")


def test_wrong_input_of_another_rank_alone_is_shown_after_a_while(capsys, impatient):
    start = time.monotonic()
    end(rank(1, dist.HashStore()), WRONG)
    assert capsys.readouterr().err == f"{WRONG}\n"
    assert time.monotonic() - start >= 0.1


def lose_a_peer(group):
    return end(group, PeerLostError("all_reduce: Connection closed by peer"))


def test_one_rank_explains_a_loss_and_names_who_is_missing(capsys, impatient, monkeypatch):
    monkeypatch.setattr(watch, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(failure, "_STORE_SECONDS", 60.0)  # its store is never stuck
    store = dist.HashStore()
    first, second = rank(0, store, size=3), rank(1, store, size=3)
    first.watch.place = "round 4"
    store.set("watch/node/1", '["1.0", false, {"1": ["", "n1", "round 4", true, true, false]}]')
    assert lose_a_peer(first) == 1
    assert lose_a_peer(second) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rank 0 of 3 on ")
    assert "stopped in round 4, a peer is gone: all_reduce: Connection closed by peer; no answer from rank 2 on" in line


class Stuck:
    """A store whose owner was stopped: it takes requests and answers none."""

    def __getattr__(self, name):
        return lambda *_: time.sleep(30)


class Gone:
    def __getattr__(self, name):
        def fail(*_):
            raise dist.DistNetworkError("Connection reset by peer")

        return fail


@pytest.mark.parametrize("store", [Stuck(), Gone()], ids=["stuck", "gone"])
@pytest.mark.parametrize(("number", "speaks"), [(1, True), (2, True), (3, False)])
def test_without_the_store_the_first_ranks_left_speak(capsys, monkeypatch, store, number, speaks):
    monkeypatch.setattr(failure, "_STORE_SECONDS", 0.1)
    environment = Environment("srun", number, 6, 0, 2, "localhost", 1)
    assert lose_a_peer(Group(environment, "cpu", "gloo", store=store)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == speaks
    assert all("no answer from rank 0 on" in line and "(it keeps the ranks' store)" in line for line in lines)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("launcher", "when"),
    [("torchrun", "before"), ("mpirun", "before"), ("torchrun", "everywhere"), ("mpirun", "input of 1")],
)
def test_wrong_input_is_shown_once_and_ends_all_ranks(launch, script, launcher, when):
    done = launch(launcher, 2, script, when, "auto", 30)
    assert done.stderr.count("wrong input\nwhere: here\n") == 1, done.stderr
    assert 'fails.py", line' not in done.stderr  # no traceback of ours
    # torchrun has its own status and says that of its ranks.
    assert done.returncode == 2 if launcher == "mpirun" else "exitcode  : 2" in done.stderr


@pytest.mark.cluster
def test_a_fault_of_one_rank_is_shown_once_and_ends_all_ranks(launch, script):
    done = launch("mpirun", 2, script, "fault of 1", "auto", 30)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: broken") == 1
    assert done.stderr.count("rank 1 of 2 on") == done.stderr.count("rank 1 of 2") > 3
    assert done.stderr.count('fails.py", line') == 1


@pytest.mark.cluster
def test_a_killed_rank_ends_the_others_within_seconds(launch, script):
    # A time-out of 300 s in the collectives: what ends them is the broken connection, or the launcher.
    done = launch("torchrun", 3, script, "kill 1", "auto", 300)
    assert done.returncode == 1
    assert 'fails.py", line' not in done.stderr


@pytest.mark.cluster
def test_a_silent_rank_is_given_up_after_the_timeout(launch, script):
    done = launch("mpirun", 2, script, "sleep 1", "mpi", 5)
    assert done.returncode == 1
    assert "rank 0 of 2" in done.stderr
    assert "stopped in start-up, a peer is gone: all_reduce: timed out after 5 s; not arrived: rank 1 on" in done.stderr


@pytest.mark.cluster
def test_a_run_that_all_ranks_stop_keeps_its_status(launch, script):
    done = launch("mpirun", 2, script, "stop", "gloo", 30)
    assert (done.returncode, done.stderr) == (75, "")


def test_torchruns_report_ends_with_what_a_rank_said_first(tmp_path, monkeypatch, capsys):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    for error in (WRONG, ValueError("later")):
        with pytest.raises(SystemExit), ends_together(rank(0, size=1)):
            raise error
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    report = str(ChildFailedError("fedmef_dist", {0: ProcessFailure(0, 1, 2, str(file))}))
    assert report.rstrip("=\n").endswith("no such file: mnist\n  where: data.root\n  mend: set data.download=true")
