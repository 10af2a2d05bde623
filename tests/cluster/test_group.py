import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster import group as module
from fedmef_dist.cluster import local_ranks, transport
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group, RuntimeSettings, choose_backend, choose_device, choose_threads, open_group
from fedmef_dist.cluster.transport import MpiTransport, PeerLostError, mpi_world

SINGLE = Environment("single", 0, 1, 0, 1, None, None)
PAIR = Environment("torchrun", 1, 2, 1, 2, "localhost", 29500)

# Every rank prints what it got; ranks hold r + 1, so that a rank that is left out, or counted twice, shows.
SCRIPT = """
import json, os, sys
import torch
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group

with open_group(detect(os.environ), RuntimeSettings(backend=sys.argv[1], timeout=30.0)) as group:
    total = torch.tensor([2**53 + 1, -group.rank]); group.all_reduce(total)
    parts = torch.full((2, 3), group.rank + 0.5); group.all_reduce(parts)
    word = torch.tensor(group.rank * 10.0); group.broadcast(word, source=1)
    halves = group.all_gather(torch.tensor([[group.rank, 7]], dtype=torch.bfloat16))
    scalars = group.all_gather(torch.tensor(group.rank))
    group.barrier()
    result = dict(rank=group.rank, size=group.world_size, backend=group.backend, threads=torch.get_num_threads(),
        launcher=group.environment.launcher, total=total.tolist(), parts=parts.tolist(), word=word.item(),
        halves=halves.tolist(), scalars=scalars.tolist(), moved=group.bytes_moved)
    print(json.dumps(result) + "\\n", end="", flush=True)
"""

TWICE = """
import sys, time
import torch
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group

for number in range(2):
    with open_group(detect(), RuntimeSettings(timeout=60)) as group:
        total = torch.tensor(10**group.rank + number)
        group.all_reduce(total)
        print(f"{total}\\n", end="", flush=True)
    time.sleep(3 * (group.rank == int(sys.argv[1])))
"""

AGAIN = """
import torch
from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import RuntimeSettings, open_group

for wrong in (True, False):
    try:
        with open_group(detect(), RuntimeSettings(timeout=60)) as group:
            if wrong:
                raise UserError("wrong on every rank")
            total = torch.tensor(10**group.rank)
            group.all_reduce(total)
            print(f"{total}\\n", end="", flush=True)
    except UserError:
        pass
"""

FAULTS = """
import resource
import torch
from fedmef_dist.cluster.group import keep_freed_memory

keep_freed_memory()
faults = []
for step in range(20):
    layers = [torch.ones(500_000) for layer in range(12)]
    del layers
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[9])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator learns what to keep")
def test_a_step_finds_the_memory_that_the_one_before_has_freed():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 400  # a step touches 5,900 pages


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("launcher", "asked", "backend", "name"),
    [
        ("torchrun", "auto", "gloo", "torchrun"),
        ("mpirun", "auto", "gloo", "mpich"),
        ("mpirun", "mpi", "mpi", "mpich"),
    ],
)
def test_two_processes_compute_together(launch, tmp_path, launcher, asked, backend, name):
    script = tmp_path / "collectives.py"
    script.write_text(SCRIPT)
    done = launch(launcher, 2, script, asked, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    results = sorted(map(json.loads, done.stdout.split("\n")[:-1]), key=lambda result: result["rank"])
    assert results == [
        {
            "rank": rank,
            "size": 2,
            "backend": backend,
            "threads": 1,
            "launcher": name,
            "total": [2**54 + 2, -1],  # 2**53 + 1 is no float64: the sum is made of integers
            "parts": [[2.0] * 3] * 2,
            "word": 10.0,
            "halves": [[[0.0, 7.0]], [[1.0, 7.0]]],
            "scalars": [0, 1],
            "moved": 16 + 24 + 4 + 4 + 8,
        }
        for rank in range(2)
    ]


@pytest.mark.cluster
@pytest.mark.parametrize("late", [0, 1])
def test_a_program_meets_several_times_under_torchrun(launch, tmp_path, late):
    """Whose store outlives each of its runs."""
    script = tmp_path / "twice.py"
    script.write_text(TWICE)
    done = launch("torchrun", 2, script, late, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, sorted(done.stdout.split())) == (0, ["11", "11", "13", "13"]), done.stderr


@pytest.mark.cluster
def test_a_program_meets_again_after_a_run_that_was_wrong_on_every_rank(launch, tmp_path):
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    done = launch("torchrun", 2, script, env={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout.split()) == (0, ["11", "11"]), done.stderr


@pytest.mark.cluster
@pytest.mark.parametrize("late", [0, 1])
def test_a_program_meets_several_times_where_rank_0_keeps_the_store(tmp_path, late):
    script, output = tmp_path / "twice.py", tmp_path / "output"
    script.write_text(TWICE)
    command = [sys.executable, str(script), str(late)]
    places = [{**place, "CUDA_VISIBLE_DEVICES": ""} for place in local_ranks._environments(2)]
    with output.open("wb") as file:
        status = local_ranks.wait_for([(command, place) for place in places], file)
    assert (status, sorted(output.read_text().split())) == (0, ["11", "11", "13", "13"])


@pytest.mark.parametrize("launcher", ["single", "torchrun", "srun"])
def test_the_mpi_backend_needs_mpirun(launcher):
    environment = Environment(launcher, 0, 1, 0, 1, None, None)
    with pytest.raises(UserError, match=f"needs mpirun, this process was started by {launcher}"):
        choose_backend(environment, RuntimeSettings(backend="mpi"), own_device=False)


def test_one_rank_needs_no_process_group():
    threads = torch.get_num_threads()
    with open_group(SINGLE, RuntimeSettings(device="cpu", threads=threads + 1)) as group:
        assert not torch.distributed.is_initialized()
        assert torch.get_num_threads() == threads + 1
        tensor = torch.tensor([1, 2])
        group.all_reduce(tensor)
        group.broadcast(tensor)
        group.barrier()
        gathered = group.all_gather(tensor)
        assert tensor.tolist() == [1, 2]
        assert gathered.tolist() == [[1, 2]]
        assert group.bytes_moved == 0
        gathered.zero_()
        assert tensor.tolist() == [1, 2]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        (5, {"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "2"}, 5),
        (None, {"SLURM_CPUS_PER_TASK": "3", "OMP_NUM_THREADS": "2"}, 3),
        (None, {"OMP_NUM_THREADS": "2"}, 2),
        (None, {"OMP_NUM_THREADS": "4,2"}, 4),
        (None, {}, 1),
    ],
)
def test_threads_come_from_the_setting_then_slurm_then_openmp(setting, environ, expected):
    assert choose_threads(RuntimeSettings(threads=setting), environ) == expected


@pytest.mark.parametrize("text", ["many", "0", "", "-1", "1025", "100000", "²"])
def test_a_wrong_number_of_threads_is_refused(text):
    with pytest.raises(UserError, match="OMP_NUM_THREADS"):
        choose_threads(RuntimeSettings(), {"OMP_NUM_THREADS": text})


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(module.dist, "is_nccl_available", lambda: True)


@pytest.mark.parametrize(("local_rank", "index"), [(0, 0), (1, 1), (2, 0), (3, 1)])
def test_ranks_share_the_gpus_of_their_node(two_gpus, local_rank, index):
    environment = Environment("torchrun", local_rank, 4, local_rank, 4, "localhost", 1)
    assert choose_device(environment, RuntimeSettings()) == torch.device("cuda", index)
    assert choose_device(environment, RuntimeSettings(device="cpu")) == torch.device("cpu")


def test_nccl_is_chosen_where_every_rank_has_a_gpu(two_gpus):
    assert choose_backend(PAIR, RuntimeSettings(), own_device=True) == "nccl"
    assert choose_backend(PAIR, RuntimeSettings(), own_device=False) == "gloo"
    assert choose_backend(PAIR, RuntimeSettings(backend="gloo"), own_device=True) == "gloo"
    with pytest.raises(UserError, match="nccl needs a CUDA device of its own for each rank"):
        choose_backend(PAIR, RuntimeSettings(backend="nccl"), own_device=False)


def test_cuda_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(PAIR, RuntimeSettings()) == torch.device("cpu")
    with pytest.raises(UserError, match="no CUDA device"):
        choose_device(PAIR, RuntimeSettings(device="cuda"))
    with pytest.raises(UserError, match="nccl needs"):
        choose_backend(PAIR, RuntimeSettings(backend="nccl"), own_device=False)


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"threads": 1025}, {"timeout": 0.0}, {"device": "tpu"}, {"backend": "ucc"}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RuntimeSettings(**wrong)


def test_a_missing_mpi_library_is_the_users_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(UserError, match=r"pip install fedmef_dist\[mpich\]"):
        mpi_world(Environment("mpich", 0, 2, 0, 2, None, None))


def test_opening_one_rank_leaves_the_environment_alone():
    before = dict(os.environ)
    with open_group(SINGLE, RuntimeSettings(device="cpu")) as group:
        assert isinstance(group, Group)
    assert dict(os.environ) == before


class Late:
    """A clock, on which asking takes 10 us, and of COMM_WORLD the barrier, which the others reach after 0.1 s."""

    def __init__(self):
        self.asked, self.now = 0, 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def Ibarrier(self):
        return self

    def Test(self):
        self.asked += 1
        self.now += 1e-5
        return self.now > 0.1


@pytest.mark.parametrize(("crowded", "fewest", "most"), [(False, 9_900, 10_100), (True, 300, 2_000)])
def test_ranks_that_share_cores_leave_them_to_those_whom_mpi_waits_for(monkeypatch, crowded, fewest, most):
    late = Late()
    monkeypatch.setattr(transport, "time", late)
    MpiTransport(late, 60.0, crowded).barrier()
    assert fewest < late.asked < most
    assert late.now < 0.1011


def test_mpi_gives_up_on_a_silent_rank(monkeypatch):
    late = Late()
    monkeypatch.setattr(transport, "time", late)
    with pytest.raises(PeerLostError, match=r"barrier: timed out after 0.01 s"):
        MpiTransport(late, 0.01, crowded=True).barrier()
