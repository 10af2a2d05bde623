"""What makes runs slow, wrong or impossible on clusters, told from the ranks' own words, and the cure of each.

docs/cluster.md has the same table for people.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from fedmef_dist.cluster.environment import Environment

K = TypeVar("K")
_ENOUGH_SHARED_MEMORY = 2**30


class RankFacts(NamedTuple):
    """What one rank says about itself, as text; ``cores`` are the numbers of those that it may use: "0-3,8"."""

    rank: str
    host: str
    local_rank: str
    device: str
    threads: str
    interface: str
    torch: str
    processor: str
    cores: str


@dataclass(frozen=True)
class Symptom:
    """Something that will hurt a run, and how to mend it."""

    what: str
    cure: str


def symptoms(
    ranks: Sequence[RankFacts], place: Environment, environ: Mapping[str, str], shared_memory: int | None
) -> list[Symptom]:
    """Everything that is wrong with these ranks; ``shared_memory`` is the size of /dev/shm in bytes."""
    return [
        *_without_launcher(place, environ),
        *_too_many_threads(ranks),
        *_loopback(ranks),
        *_shared_devices(ranks),
        *_idle_devices(ranks, environ),
        *_little_shared_memory(ranks, shared_memory),
        *_unlike_ranks(ranks),
    ]


def _without_launcher(place: Environment, environ: Mapping[str, str]) -> Iterator[Symptom]:
    tasks = environ.get("SLURM_NTASKS", "1")
    if place.launcher == "single" and tasks.isdecimal() and int(tasks) > 1:
        yield Symptom(
            f"the job has {tasks} tasks, but this is a single process",
            "start it with srun, or with the scripts in slurm/",
        )


def _too_many_threads(ranks: Sequence[RankFacts]) -> Iterator[Symptom]:
    for host, own in _grouped(ranks, lambda rank: rank.host).items():
        threads = sum(int(rank.threads) for rank in own)
        cores = len(set().union(*(_core_numbers(rank.cores) for rank in own)))
        if threads > cores > 0:
            yield Symptom(
                f"{len(own)} ranks on {host} run {threads} threads on {cores} cores",
                "give --cpus-per-task to the job, set runtime.threads or OMP_NUM_THREADS, or start fewer ranks a node",
            )


def _loopback(ranks: Sequence[RankFacts]) -> Iterator[Symptom]:
    lost = sorted({rank.host for rank in ranks if rank.interface == "lo"})
    if lost and len({rank.host for rank in ranks}) > 1:
        yield Symptom(
            f"ranks on {', '.join(lost)} would talk over the loopback interface",
            "export GLOO_SOCKET_IFNAME, and NCCL_SOCKET_IFNAME for GPUs; `ip -brief address` shows the interfaces",
        )


def _shared_devices(ranks: Sequence[RankFacts]) -> Iterator[Symptom]:
    used = _grouped([rank for rank in ranks if rank.device.startswith("cuda")], lambda rank: (rank.host, rank.device))
    for (host, device), own in used.items():
        if len(own) > 1:
            yield Symptom(
                f"{len(own)} ranks on {host} share {device}",
                "as many GPUs as tasks on a node (--gpus-per-node, --gpus-per-task); to share one see docs/gpu.md",
            )


def _idle_devices(ranks: Sequence[RankFacts], environ: Mapping[str, str]) -> Iterator[Symptom]:
    given = environ.get("SLURM_GPUS_ON_NODE") or environ.get("SLURM_JOB_GPUS")
    if given and all(rank.device.startswith("cpu") for rank in ranks):
        yield Symptom(
            "the job has GPUs, but the ranks compute on the CPU",
            "install a torch wheel built for CUDA; in a container pass the GPUs on (apptainer exec --nv)",
        )


def _little_shared_memory(ranks: Sequence[RankFacts], shared_memory: int | None) -> Iterator[Symptom]:
    several = len([rank for rank in ranks if rank.device.startswith("cuda")]) > 1
    if several and shared_memory is not None and shared_memory < _ENOUGH_SHARED_MEMORY:
        yield Symptom(
            f"/dev/shm holds {shared_memory // 2**20} MiB, which is little for NCCL",
            "start the container with --shm-size=1g or --ipc=host, or export NCCL_SHM_DISABLE=1",
        )


def _unlike_ranks(ranks: Sequence[RankFacts]) -> Iterator[Symptom]:
    for name in ("processor", "threads", "torch"):
        values = sorted({getattr(rank, name) for rank in ranks})
        if len(values) > 1:
            yield Symptom(
                f"ranks differ in {name}: {', '.join(values)}",
                "the digest of a run depends on it; ask for nodes of one kind (--constraint) and set runtime.threads",
            )


def _grouped(ranks: Sequence[RankFacts], key: Callable[[RankFacts], K]) -> dict[K, list[RankFacts]]:
    groups: dict[K, list[RankFacts]] = {}
    for rank in ranks:
        groups.setdefault(key(rank), []).append(rank)
    return groups


def own_cores() -> str:
    """The cores that this process may use, as ranges."""
    numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _core_numbers(text: str) -> set[int]:
    ranges = [part.partition("-") for part in text.split(",") if part]
    return {number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)}


def processor_name() -> str:
    """The processor's model, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
