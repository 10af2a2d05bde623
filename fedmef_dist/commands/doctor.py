"""What this installation and this launch look like: `fedmef-dist doctor`, alone or under a launcher."""

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedmef_dist.base.text import printable
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.gpu import identity
from fedmef_dist.cluster.group import Group, RuntimeSettings, open_group
from fedmef_dist.cluster.rendezvous import interface_of, resolve
from fedmef_dist.cluster.symptoms import RankFacts, Symptom, own_cores, processor_name, symptoms
from fedmef_dist.data.fashion_mnist import DEBIAN_FOLDER

_LIMIT_SECONDS = 60.0
_ROW_BYTES = 1024
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Finding:
    """One thing that a run may need: what was found of it (None: nothing) and how to get it."""

    name: str
    found: str | None
    remedy: str


def doctor() -> int:
    """Print what was found (launcher, ranks, devices, libraries, data sets) and what is missing; 0 if ranks can talk.

    Does one all-reduce with a limit of 60 seconds. Every rank contributes its line, rank 0 prints.
    """
    environment = detect(os.environ)
    with (
        open_group(environment, RuntimeSettings(device="auto", timeout=_LIMIT_SECONDS)) as group,
        ends_together(group),
    ):
        seconds, right = _try_all_reduce(group)
        rows = _gather(group, _own_row(group))
        if group.rank == 0:
            _show(group, rows, f"{'right' if right else 'WRONG SUM'}, {1000 * seconds:.2f} ms")
            _show_symptoms(symptoms(rows, environment, os.environ, _shared_memory()))
    return 0 if right else 1


def _try_all_reduce(group: Group) -> tuple[float, bool]:
    """Seconds of one all-reduce of an int64, and whether its sum is right on this rank."""
    ranks = torch.tensor([group.rank + 1])
    group.barrier()
    start = time.perf_counter()
    group.all_reduce(ranks)
    expected = group.world_size * (group.world_size + 1) // 2
    return time.perf_counter() - start, int(ranks) == expected


def _own_row(group: Group) -> str:
    place, host = group.environment, socket.gethostname()
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or interface_of(resolve(host) or "127.0.0.1") or "unknown"
    # By its identity a GPU is told from another that a rank sees under the same number.
    cuda = group.device.type == "cuda"
    device = f"{torch.cuda.get_device_name(group.device)} {identity(group.device)[:8]}" if cuda else "cpu"
    facts = RankFacts(
        rank=str(place.rank),
        host=host,
        local_rank=str(place.local_rank),
        device=f"{group.device} ({device})",
        threads=str(torch.get_num_threads()),
        interface=interface,
        torch=torch.__version__,
        processor=processor_name(),
        cores=own_cores(),
    )
    return "\t".join(facts)


def _gather(group: Group, row: str) -> list[RankFacts]:
    """The rows of all ranks, sent as bytes of fixed length."""
    text = row.encode()[:_ROW_BYTES].ljust(_ROW_BYTES, b"\0")
    gathered = group.all_gather(torch.frombuffer(bytearray(text), dtype=torch.uint8))
    lines = (bytes(line.tolist()).rstrip(b"\0").decode(errors="replace") for line in gathered)
    return [RankFacts(*line.split("\t")) for line in lines]


def _shared_memory() -> int | None:
    """Bytes of the file system that processes of one machine share memory in; None where there is none."""
    return shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else None


def _show_symptoms(found: Sequence[Symptom]) -> None:
    console = Console(highlight=False)
    for symptom in found:
        shown = Text.assemble("\n", (printable(symptom.what), "bold"), f"\n  {printable(symptom.cure)}")
        console.print(shown, soft_wrap=True)


def _show(group: Group, rows: Sequence[RankFacts], all_reduce: str) -> None:
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120)
    place = group.environment
    meeting = f", meeting at {printable(place.host)}:{place.port}" if place.host else ""
    console.print(f"launcher    {place.launcher}, {place.world_size} rank{'s' * (place.world_size > 1)}{meeting}")
    console.print(f"backend     {group.backend if place.world_size > 1 else 'none needed for one rank'}")
    console.print(f"all-reduce  {all_reduce}\n")
    ranks = Table(*(name.replace("_", " ") for name in RankFacts._fields), box=None, pad_edge=False)
    for row in rows:
        ranks.add_row(*map(printable, row))
    console.print(ranks)
    console.print()
    for finding in findings():
        state = (printable(finding.found),) if finding.found else (("missing", "yellow"), f": {finding.remedy}")
        console.print(Text.assemble(f"{finding.name:<14}", *state), soft_wrap=True)


def findings() -> Iterator[Finding]:
    """What this machine has of the optional parts: CUDA, MPI, Slurm, W&B, data sets."""
    cuda = f"{torch.cuda.device_count()} devices" if torch.cuda.is_available() else None
    yield Finding("torch", f"{torch.__version__}, {os.cpu_count()} processors", "pip install fedmef_dist")
    yield Finding("CUDA", cuda, "runs use the CPU; for GPUs install a torch wheel built for CUDA")
    yield Finding("MPI library", mpi_library(), "load your site's MPI module, or pip install 'fedmef_dist[mpich]'")
    yield Finding("mpirun", _mpirun(), "load your site's MPI module, or pip install 'fedmef_dist[mpich]'")
    yield Finding("Slurm", shutil.which("srun"), "only needed on a cluster; on Debian: apt install slurm-wlm munge")
    yield Finding("wandb", _version("wandb"), "pip install wandb")
    fashion = str(DEBIAN_FOLDER) if DEBIAN_FOLDER.is_dir() else None
    yield Finding("fashion_mnist", fashion, "apt install dataset-fashion-mnist, or set data.download=true")


def _mpirun() -> str | None:
    # The mpich wheel's mpirun lies beside python, also where the virtual environment is not activated.
    return shutil.which("mpirun", path=f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")


def mpi_library() -> str | None:
    """The first line of the MPI library's own description, None without a library. Does not initialise MPI."""
    import mpi4py

    mpi4py.rc.initialize = False  # without effect where mpirun made the group load it before
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return None
    return " ".join(MPI.Get_library_version().splitlines()[0].split()).rstrip("\0")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
