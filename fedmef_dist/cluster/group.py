"""All ranks of a run as one object with the few collectives that the simulation needs."""

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.base.settings import Settings
from fedmef_dist.cluster.board import open_board
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.gpu import every_rank_has_its_own, identity, same_bits
from fedmef_dist.cluster.progress import STUCK_SECONDS
from fedmef_dist.cluster.rendezvous import meeting_host, open_store, prepare_gloo
from fedmef_dist.cluster.transport import MpiTransport, NcclTransport, TorchTransport, Transport, mpi_world, peers_lost
from fedmef_dist.cluster.two_level import LevelTransport, open_levels
from fedmef_dist.cluster.watch import Watch

# The status of a run that a signal stopped early: all ranks leave together, as after the last round.
STOPPED_EARLY = 75

_MEETING_SECONDS = 300.0
# No machine has so many cores; asked for far more, OpenMP crashes the process.
MOST_THREADS = 1024
_MOST_SLOTS = 64
# Of the groups that this program opens; every rank opens them in the same order.
_MEETINGS = itertools.count()
# Of groups that have failed: closed once the program, which has heard of it, opens the next one.
_LEFT_OPEN: list[TorchTransport] = []


class RuntimeSettings(Settings):
    """Where and how the ranks compute and talk."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA if there is a device, otherwise the CPU"
    )
    backend: Literal["auto", "gloo", "nccl", "mpi"] = Field(
        "auto", description="auto: nccl if every rank has a CUDA device of its own, else gloo; mpi: mpi4py's buffers"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=MOST_THREADS,
        description="threads of each rank; null: SLURM_CPUS_PER_TASK, else OMP_NUM_THREADS, else 1",
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="type of the layers' arithmetic, weights stay fp32; tf32: CUDA's products with 10 bits of mantissa",
    )
    slots: int = Field(
        1,
        ge=1,
        le=_MOST_SLOTS,
        description="clients that a rank trains beside each other, each on a model of its own and on a GPU in a stream "
        "of its own; the same digest, that many times the memory; for networks that do not fill a GPU",
    )
    graphs: bool = Field(
        True, description="on a GPU: record clients' forward and backward passes as CUDA graphs; the same bits"
    )
    sums: Literal["auto", "whole", "short"] = Field(
        "auto",
        description="bytes of an integer that gloo moves between nodes: 8 (whole), 4 or 5 where it fits (short), or "
        "what is faster by the links as measured; the sum is the same",
    )
    timeout: float = Field(
        1800.0,
        gt=0,
        le=10**7,
        description="seconds after which a collective gives up on a silent rank; one that lives and makes no progress "
        "is given a sixth of it, at least 300 s",
    )


class Group:
    """The ranks of one run.

    Collectives take contiguous tensors on the CPU or on `device` and work in place; with one rank they do nothing.
    `bytes_moved` counts the bytes of the tensors that this rank handed to collectives. Where another rank is lost or
    silent for longer than the timeout, they raise PeerLostError.
    """

    def __init__(
        self,
        environment: Environment,
        device: torch.device,
        backend: str,
        transport: Transport | None = None,
        store: dist.Store | None = None,
    ) -> None:
        self.environment = environment
        self.rank, self.world_size = environment.rank, environment.world_size
        self.device, self.backend, self.store = device, backend, store
        self.bytes_moved = 0
        self.watch = Watch(environment, store)
        self._transport = transport

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum `tensor` over all ranks in place; int64 sums are exact and wrap like int64."""
        if self._transport is not None:
            with self._staged(tensor) as buffer, self._waiting():
                self._transport.all_reduce(buffer)

    def is_short(self, count: int) -> bool:
        """Whether a sum of so many integers travels faster with fewer bytes for what is small."""
        return isinstance(self._transport, LevelTransport) and self._transport.is_short(count)

    def all_reduce_short(self, tensor: Tensor) -> None:
        """Sum int64 `tensor` over all ranks in place, with four or five bytes for what fits; exact as ever."""
        if isinstance(self._transport, LevelTransport):
            with self._staged(tensor) as buffer, self._waiting():
                self._transport.all_reduce_short(buffer)
        else:
            self.all_reduce(tensor)

    def broadcast(self, tensor: Tensor, source: int = 0) -> None:
        """Overwrite `tensor` with that of the rank `source`."""
        if self._transport is not None:
            with self._staged(tensor) as buffer, self._waiting():
                self._transport.broadcast(buffer, source)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's tensor, stacked in the order of ranks: shape (world_size, *tensor.shape)."""
        if self._transport is None:
            return tensor.unsqueeze(0).clone()
        with self._staged(tensor) as buffer:
            output = buffer.new_empty((self.world_size, *tensor.shape))
            with self._waiting():
                self._transport.all_gather(output, buffer)
        return output.to(tensor.device)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self._transport is not None:
            with self._waiting():
                self._transport.barrier()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        # Not reset by an error: who waited when the collective broke is what the others want to know.
        self.watch.progress.mark()
        self.watch.waiting = True
        yield
        self.watch.progress.waited()
        self.watch.waiting = False

    @contextmanager
    def _staged(self, tensor: Tensor) -> Iterator[Tensor]:
        """The tensor, or a copy in host memory where the backend cannot read the device; the copy is written back."""
        self.bytes_moved += tensor.nbytes
        buffer = tensor.to(self.device if self.backend == "nccl" else "cpu")
        yield buffer
        if buffer is not tensor:
            tensor.copy_(buffer)


@contextmanager
def open_group(
    environment: Environment, settings: RuntimeSettings, environ: Mapping[str, str] = os.environ
) -> Iterator[Group]:
    """Set the threads, choose the device, meet the other ranks; closes the group, after a failure only its own part.

    The caller's threads, device and settings of CUDA are back when it is closed. Raises UserError where device or
    backend are not to be had here, or the ranks cannot meet.
    """
    meeting = next(_MEETINGS)
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(settings, environ))
    keep_freed_memory()
    try:
        device = choose_device(environment, settings)
        with (
            same_bits(device, tf32=settings.precision == "tf32"),
            _meeting(environment, settings, device, meeting) as group,
        ):
            yield group
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Lets glibc keep up to 64 MB that one step frees for the next, which else takes them anew, page by page.

    It keeps twice the largest block of up to 32 MB that was ever freed (mallopt(3)): this one, to which nobody writes.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8)


@contextmanager
def _meeting(
    environment: Environment, settings: RuntimeSettings, device: torch.device, meeting: int
) -> Iterator[Group]:
    if environment.world_size == 1:
        yield Group(environment, device, choose_backend(environment, settings, device.type == "cuda"))
        return
    store = open_store(environment, timedelta(seconds=min(settings.timeout, _MEETING_SECONDS)), meeting)
    own = every_rank_has_its_own(store, environment, identity(device))
    backend = choose_backend(environment, settings, own)
    if backend == "gloo" and device.type == "cuda" and settings.backend == "auto" and environment.rank == 0:
        tell("ranks share a GPU: gloo moves their sums through host memory, where nccl would with a GPU for each")
    transport = _open_transport(environment, settings, device, backend, store)
    group = Group(environment, device, backend, transport, store)
    group.watch.patience = max(STUCK_SECONDS, settings.timeout / 6)
    group.watch.share(*open_board(group))
    group.bytes_moved = 0
    group.watch.start()
    together = False
    try:
        yield group
        together = True
    except SystemExit as leaving:
        together = leaving.code in (None, 0, STOPPED_EARLY)
        raise
    finally:
        group.watch.close()
        if together:  # a peer that is gone would make a clean shutdown wait for it
            transport.close()
        elif isinstance(transport, TorchTransport):
            _LEFT_OPEN.append(transport)


def choose_threads(settings: RuntimeSettings, environ: Mapping[str, str]) -> int:
    """Threads of this rank: the setting, else SLURM_CPUS_PER_TASK, else OMP_NUM_THREADS, else 1.

    Raises UserError where the variable is not a number from 1 to 1,024.
    """
    if settings.threads is not None:
        return settings.threads
    name = "SLURM_CPUS_PER_TASK" if "SLURM_CPUS_PER_TASK" in environ else "OMP_NUM_THREADS"
    text = environ.get(name, "1").split(",")[0]  # OpenMP allows one number for each nesting level
    if not re.fullmatch(r" *0*[1-9][0-9]{0,3} *", text) or int(text) > MOST_THREADS:
        raise UserError(
            f"{name}={text!r} is not a number of threads",
            where="the environment",
            mend="set runtime.threads instead",
        )
    return int(text)


def choose_device(environment: Environment, settings: RuntimeSettings) -> torch.device:
    """The CPU, or this rank's CUDA device by its local rank. Raises UserError where CUDA is asked for and missing."""
    if settings.device == "cpu" or (settings.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "no CUDA device is available here", where="runtime.device: cuda", mend="set runtime.device: cpu or auto"
        )
    return torch.device("cuda", environment.local_rank % torch.cuda.device_count())


def choose_backend(environment: Environment, settings: RuntimeSettings, own_device: bool) -> str:
    """One of gloo, nccl, mpi. Raises UserError where the one asked for cannot work with this launcher and device.

    ``own_device`` tells that every rank has a CUDA device of its own.
    """
    if settings.backend == "auto":
        return "nccl" if own_device and dist.is_nccl_available() else "gloo"
    if settings.backend == "nccl" and not (own_device and dist.is_nccl_available()):
        raise UserError(
            "nccl needs a CUDA device of its own for each rank", where="runtime.backend: nccl", mend="use gloo or auto"
        )
    if settings.backend == "mpi" and environment.launcher not in ("openmpi", "mpich"):
        raise UserError(
            f"the mpi backend needs mpirun, this process was started by {environment.launcher}",
            where="runtime.backend: mpi",
            mend="start with launch/mpirun.sh, or set runtime.backend: auto",
        )
    return settings.backend


def _open_transport(
    environment: Environment, settings: RuntimeSettings, device: torch.device, backend: str, store: dist.Store
) -> Transport:
    if backend == "mpi":
        crowded = environment.local_world_size > (os.cpu_count() or 1)
        return MpiTransport(mpi_world(environment), settings.timeout, crowded)
    if backend == "gloo":
        prepare_gloo(environment, meeting_host(environment))
    if backend == "nccl":
        return NcclTransport(environment, device, store, settings.timeout)
    while _LEFT_OPEN:
        _LEFT_OPEN.pop().close()
    with peers_lost("start-up"):
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("collectives", store),
            rank=environment.rank,
            world_size=environment.world_size,
            timeout=timedelta(seconds=settings.timeout),
        )
    return open_levels(environment, settings.timeout, settings.sums)
