"""What moves the bytes of a collective: torch.distributed (gloo, nccl) or mpi4py buffers."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.environment import Environment

# Torch's own watchdog comes behind this package's deadline.
_WATCHDOG_SECONDS = 60.0
# So long the host asks NCCL again and again, then a thousand times a second; MPI it asks no more seldom.
_SPIN_SECONDS, _POLL_SECONDS = 0.01, 0.001


class PeerLostError(RuntimeError):
    """A collective broke or timed out because another rank is gone or stuck; the fault is not this rank's."""


class Transport(Protocol):
    """In-place collectives on contiguous tensors that the transport can reach (on the CPU, or for nccl on CUDA)."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy from the rank `source` to the others."""

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect `tensor` of rank r in `output[r]`."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Release what the transport holds."""


class TorchTransport:
    """The default process group."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks."""
        with peers_lost("all_reduce"):
            dist.all_reduce(tensor)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy from the rank `source` to the others."""
        with peers_lost("broadcast"):
            dist.broadcast(tensor, source)

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect `tensor` of rank r in `output[r]`."""
        with peers_lost("all_gather"):
            dist.all_gather(list(output), tensor)

    def barrier(self) -> None:
        """Wait for all ranks."""
        with peers_lost("barrier"):
            dist.barrier()

    def close(self) -> None:
        """Destroy the process group."""
        dist.destroy_process_group()


class NcclTransport:
    """A process group of NCCL's that the host waits for, so that a rank which waits can be told from one that computes.

    NCCL itself notices a lost peer late or never, and torch's watchdog would then end the process without naming
    anybody. Here the waiting is the main thread's, as with the other transports: the rank's watch sees it, and the
    deadline is this one's.

    Args:
        environment: this rank.
        device: its own CUDA device.
        store: of the ranks.
        timeout: seconds for which a collective is waited for.
    """

    def __init__(self, environment: Environment, device: torch.device, store: dist.Store, timeout: float) -> None:
        # The watchdog is not to abort the process where this rank is about to say what has happened.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        self._device, self._timeout = device, timeout
        with peers_lost("start-up"):
            dist.init_process_group(
                "nccl",
                store=dist.PrefixStore("collectives", store),
                rank=environment.rank,
                world_size=environment.world_size,
                timeout=timedelta(seconds=timeout + _WATCHDOG_SECONDS),
                device_id=device,
            )

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks."""
        self._wait("all_reduce", lambda: dist.all_reduce(tensor, async_op=True))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy from the rank `source` to the others."""
        self._wait("broadcast", lambda: dist.broadcast(tensor, source, async_op=True))

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect `tensor` of rank r in `output[r]`."""
        self._wait("all_gather", lambda: dist.all_gather(list(output), tensor, async_op=True))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce(torch.zeros(1, device=self._device))

    def close(self) -> None:
        """Destroy the process group."""
        dist.destroy_process_group()

    def _wait(self, collective: str, start: Callable[[], Any]) -> None:
        with peers_lost(collective):
            work = start()
            began = time.monotonic()
            while not work.is_completed():
                waited = time.monotonic() - began
                if waited > self._timeout:
                    raise PeerLostError(f"{collective}: timed out after {self._timeout:g} s")
                time.sleep(0 if waited < _SPIN_SECONDS else _POLL_SECONDS)
            work.wait()  # raises what NCCL has met


@contextmanager
def peers_lost(collective: str) -> Iterator[None]:
    """Turns what gloo and NCCL raise where a peer is gone into PeerLostError, which names the collective."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no error class of its own: what its transport layer reports is a lost or silent connection, all else
        # (a wrong shape, an unsupported dtype) is this rank's own mistake.
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            # The first sentence, without the place in gloo's sources in front of it.
            reason = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". ")[0]
            raise PeerLostError(f"{collective}: {reason}") from error
        raise


class MpiTransport:
    """Buffers of mpi4py's COMM_WORLD: nothing is pickled, NumPy shares the tensors' memory.

    Args:
        world: the communicator.
        timeout: seconds after which a collective gives up.
        crowded: whether ranks share cores. MPI keeps a core busy while it waits; a rank that waits for long then leaves
            it to those that it waits for, at the price of a hundredth of what it has waited, a millisecond at most.
    """

    def __init__(self, world: Any, timeout: float, crowded: bool) -> None:
        self._world, self._timeout, self._crowded = world, timeout, crowded

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks; of the floating types MPI knows float32 and float64."""
        from mpi4py import MPI

        buffer = tensor.numpy()
        self._wait("all_reduce", lambda: self._world.Iallreduce(MPI.IN_PLACE, buffer))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy from the rank `source` to the others."""
        self._wait("broadcast", lambda: self._world.Ibcast(_bytes(tensor), root=source))

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect `tensor` of rank r in `output[r]`."""
        self._wait("all_gather", lambda: self._world.Iallgather(_bytes(tensor), _bytes(output)))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._wait("barrier", self._world.Ibarrier)

    def close(self) -> None:
        """Leave MPI to mpi4py, which finalizes it as the interpreter ends."""

    def _wait(self, collective: str, start: Callable[[], Any]) -> None:
        request, began = start(), time.monotonic()
        while not request.Test():
            waited = time.monotonic() - began
            if waited > self._timeout:
                raise PeerLostError(f"{collective}: timed out after {self._timeout:g} s")
            time.sleep(min(waited / 100, _POLL_SECONDS) if self._crowded else 0)


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def mpi_world(environment: Environment) -> Any:
    """mpi4py's COMM_WORLD, which has to agree with the launcher about rank and size.

    Raises UserError without an MPI library, or where the library does not belong to the mpirun that started the ranks.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"mpi4py finds no MPI library: {str(error).splitlines()[0]}",
            mend="load your site's MPI module, or install one: pip install fedmef_dist[mpich]",
        ) from error
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (environment.rank, environment.world_size):
        raise UserError(
            (f"mpirun says rank {environment.rank} of {environment.world_size}, MPI rank {world.rank} of {world.size}"),
            where=f"mpi4py uses {MPI.Get_library_version().splitlines()[0][:60]}",
            mend="start with the mpirun of the same MPI library",
        )
    return world
