import os

import pytest

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.symptoms import RankFacts, own_cores, symptoms

ALONE = Environment("single", 0, 1, 0, 1, None, None)
SRUN = Environment("srun", 0, 2, 0, 1, "n1", 15000)


def rank(**facts):
    healthy = RankFacts("0", "n1", "0", "cpu (cpu)", "1", "eth0", "2.6", "EPYC", "0-3")
    return healthy._replace(**facts)


def found(*ranks, place=SRUN, environ=None, shared_memory=2**34):
    return [symptom.what for symptom in symptoms(ranks, place, environ or {}, shared_memory)]


def test_healthy_ranks_have_none():
    gpus = [rank(device=f"cuda:{number} (H100)", local_rank=str(number)) for number in range(2)]
    other = [gpu._replace(host="n2") for gpu in gpus]
    assert found(*gpus, *other, environ={"SLURM_GPUS_ON_NODE": "2"}) == []
    assert found(rank(), place=ALONE, shared_memory=None) == []


def test_a_single_process_in_a_job_of_several_tasks():
    told = ["the job has 4 tasks, but this is a single process"]
    assert found(rank(), place=ALONE, environ={"SLURM_NTASKS": "4"}) == told
    assert found(rank(), place=ALONE, environ={"SLURM_NTASKS": "1"}) == []
    assert found(rank(), environ={"SLURM_NTASKS": "4"}) == []


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        (("0-3", "0-3"), ("2", "2"), []),
        (("0-3", "0-3"), ("2", "3"), ["2 ranks on n1 run 5 threads on 4 cores", "ranks differ in threads: 2, 3"]),
        (("0-1", "2-3"), ("2", "2"), []),  # bound to cores of their own
        (("0", "0"), ("1", "1"), ["2 ranks on n1 run 2 threads on 1 cores"]),
    ],
)
def test_more_threads_than_cores(cores, threads, expected):
    ranks = [rank(cores=own, threads=number) for own, number in zip(cores, threads, strict=True)]
    assert found(*ranks) == expected


def test_nodes_are_counted_apart():
    assert found(rank(threads="4"), rank(threads="4", host="n2")) == []


def test_loopback_matters_between_hosts_only():
    assert found(rank(interface="lo"), rank(interface="lo")) == []
    told = ["ranks on n1 would talk over the loopback interface"]
    assert found(rank(interface="lo"), rank(host="n2")) == told


def test_a_gpu_for_two_ranks():
    gpu = rank(device="cuda:0 (H100 1f3a)")
    assert found(gpu, gpu) == ["2 ranks on n1 share cuda:0 (H100 1f3a)"]
    assert found(gpu, rank(device="cuda:0 (H100 77c0)")) == []  # one GPU is shown to each, and they call it the first
    assert found(gpu, gpu._replace(host="n2")) == []


@pytest.mark.parametrize("variable", ["SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS"])
def test_gpus_that_nobody_uses(variable):
    assert found(rank(), environ={variable: "2"}) == ["the job has GPUs, but the ranks compute on the CPU"]


def test_little_shared_memory_matters_to_several_gpus():
    gpus = [rank(device="cuda:0 (H100)"), rank(device="cuda:1 (H100)")]
    assert found(*gpus, shared_memory=64 * 2**20) == ["/dev/shm holds 64 MiB, which is little for NCCL"]
    assert found(gpus[0], shared_memory=64 * 2**20) == []
    assert found(rank(), rank(), shared_memory=64 * 2**20) == []


@pytest.mark.parametrize("name", ["processor", "threads", "torch"])
def test_ranks_that_differ(name):
    assert found(rank(), rank(**{name: "2"})) == [
        f"ranks differ in {name}: {', '.join(sorted([getattr(rank(), name), '2']))}"
    ]


def test_every_symptom_has_a_cure():
    gpus = [
        rank(device="cuda:0 (x)", interface="lo"),
        rank(device="cuda:0 (x)", interface="lo", host="n2", threads="9"),
    ]
    environ = {"SLURM_NTASKS": "4", "SLURM_GPUS_ON_NODE": "1"}
    for symptom in [*symptoms(gpus, ALONE, environ, 0), *symptoms([rank()], ALONE, environ, 0)]:
        assert symptom.cure


@pytest.mark.parametrize(("numbers", "text"), [({0}, "0"), ({0, 1, 2}, "0-2"), ({0, 1, 3, 8, 9}, "0-1,3,8-9")])
def test_own_cores_as_ranges(monkeypatch, numbers, text):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: numbers)
    assert own_cores() == text
