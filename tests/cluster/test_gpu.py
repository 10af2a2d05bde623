"""What a run asks of a CUDA device, on a machine without one."""

import os
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster import gpu, rendezvous, transport
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.transport import NcclTransport, PeerLostError

CUDA, CPU = torch.device("cuda", 1), torch.device("cpu")


def settings():
    cudnn = torch.backends.cudnn
    matmul = torch.get_float32_matmul_precision()
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul


@pytest.mark.parametrize(
    ("tf32", "inside"), [(False, (True, True, False, False, "highest")), (True, (True, True, False, True, "high"))]
)
def test_a_run_is_deterministic_and_gives_back_what_the_caller_had(monkeypatch, tf32, inside):
    chosen = [0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(chosen[1:]))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, environ = settings(), {}
    with gpu.same_bits(CUDA, tf32=tf32, environ=environ):
        assert settings() == inside
        assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    assert settings() == before
    assert environ == {}
    assert chosen == [0, CUDA, 0]


def test_a_workspace_of_the_users_own_stays_and_a_late_one_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    environ = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    with gpu.same_bits(CUDA, environ=environ):
        assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert capsys.readouterr().err == ""
    with gpu.same_bits(CUDA, environ={}):
        assert "CUBLAS_WORKSPACE_CONFIG=:4096:8" in capsys.readouterr().err


def test_on_the_cpu_nothing_is_set(capsys):
    before, environ = settings(), dict(os.environ)
    with gpu.same_bits(CPU, tf32=True):
        assert settings() == before
        assert dict(os.environ) == environ
    assert "on this cpu the arithmetic is fp32" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "own"),
    [(["a", "b", "c"], True), (["a", "b", "a"], False), (["a", "", "c"], False), (["", "", ""], False)],
)
def test_ranks_tell_by_the_devices_names_whether_each_has_its_own(names, own):
    # A launcher may show every rank one device only: by their numbers all would be the same.
    store, answers = dist.HashStore(), {}

    def ask(rank):
        environment = Environment("srun", rank, 3, rank, 3, "localhost", 1)
        answers[rank] = gpu.every_rank_has_its_own(store, environment, names[rank])

    ranks = [threading.Thread(target=ask, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(10)
    assert answers == dict.fromkeys(range(3), own)


@pytest.mark.parametrize(
    ("size", "what"),
    [
        (2, "1 of 2 ranks did not come within 0.1 s: rank 1"),
        (11, "10 of 11 ranks did not come within 0.1 s: ranks 1, 2, 3, 4, 5, 6, 7, 8 and 2 more"),
    ],
)
def test_who_does_not_come_is_named(size, what):
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    with pytest.raises(UserError) as caught:
        gpu.every_rank_has_its_own(store, Environment("srun", 0, size, 0, 1, "localhost", 1), "")
    assert caught.value.what == what


def test_the_loss_of_the_store_while_the_ranks_meet_is_that_of_a_peer():
    place = Environment("srun", 1, 3, 1, 3, "127.0.0.1", 1)
    server = [rendezvous._serve(place, "127.0.0.1", 0, timedelta(seconds=60))]
    client = dist.TCPStore("127.0.0.1", server[0].port, is_master=False, timeout=timedelta(seconds=60))
    threading.Timer(0.2, server.clear).start()
    with pytest.raises(PeerLostError, match=r"^start-up: "):
        gpu.every_rank_has_its_own(client, place, "")


def test_the_versions_are_those_of_the_device(monkeypatch, tmp_path):
    assert gpu.versions(CPU) == {}
    assert gpu.identity(CPU) == ""
    module = tmp_path / "version"
    module.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\nGCC version: 1.2.3\n"
    )
    monkeypatch.setattr(gpu, "_DRIVER", module)
    assert gpu._driver() == "580.159.04"


class Work:
    """A collective that is done after so many questions."""

    def __init__(self, questions, error=None):
        self.questions, self.error = questions, error

    def is_completed(self):
        self.questions -= 1
        return self.questions < 0

    def wait(self):
        if self.error is not None:
            raise self.error


@pytest.fixture
def nccl(monkeypatch):
    """Makes a transport whose collectives are ``work``; the arguments with which the process group was made."""
    made = {}
    monkeypatch.setattr(
        transport.dist, "init_process_group", lambda backend, **options: made.update(options, backend=backend)
    )
    monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")

    def make(work, timeout=5.0):
        monkeypatch.setattr(transport.dist, "all_reduce", lambda tensor, async_op: work)
        environment = Environment("torchrun", 0, 2, 0, 2, "localhost", 1)
        return NcclTransport(environment, CUDA, dist.HashStore(), timeout)

    return make, made


def test_the_host_waits_for_nccl_and_is_seen_waiting(nccl):
    make, made = nccl
    group = Group(Environment("torchrun", 0, 2, 0, 2, "localhost", 1), CPU, "nccl")
    seen = []
    work = Work(3)
    work.wait = lambda: seen.append(group.watch.waiting)
    group._transport = make(work)
    group.all_reduce(torch.ones(2))
    assert seen == [True]
    assert not group.watch.waiting
    assert made["timeout"].total_seconds() > 5  # torch's watchdog speaks only where this package has not


@pytest.mark.parametrize(
    ("work", "timeout", "said"),
    [
        (Work(10**9), 0.02, "all_reduce: timed out after 0.02 s"),
        (Work(1, dist.DistBackendError("NCCL error: remote")), 5, "NCCL error"),
    ],
)
def test_a_peer_that_nccl_waits_for_in_vain_is_lost(nccl, work, timeout, said):
    make, _ = nccl
    with pytest.raises(PeerLostError, match=said):
        make(work, timeout).all_reduce(torch.ones(1))
