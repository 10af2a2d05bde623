"""Ranks as threads of one process: real collectives without processes, for checks of a method's promises."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group

T = TypeVar("T")
R = TypeVar("R")
_PATIENCE_SECONDS = 300.0


class _Meeting:
    """What the threads share: a barrier, and a place for each rank's tensor."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=_PATIENCE_SECONDS)
        self.tensors: list[Tensor] = [torch.empty(0)] * world_size


class ThreadTransport:
    """One rank's collectives with the other threads."""

    def __init__(self, rank: int, meeting: _Meeting) -> None:
        self._rank, self._meeting = rank, meeting

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks."""
        tensor.copy_(torch.stack(self._exchange(tensor)).sum(0))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Copy from the rank `source` to the others."""
        tensor.copy_(self._exchange(tensor)[source])

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Collect `tensor` of rank r in `output[r]`."""
        output.copy_(torch.stack(self._exchange(tensor)))

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._meeting.barrier.wait()

    def close(self) -> None:
        """Nothing is held."""

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._meeting.tensors[self._rank] = tensor.clone()
        self._meeting.barrier.wait()
        found = list(self._meeting.tensors)
        self._meeting.barrier.wait()  # nobody brings the next tensor before all have read these
        return found


class ThreadRanks:
    """So many ranks on the CPU, each for a thread of its own.

    Attributes:
        groups: of each rank.
    """

    def __init__(self, world_size: int) -> None:
        self._meeting = _Meeting(world_size)
        self.groups = [self._group(rank, world_size) for rank in range(world_size)]

    def _group(self, rank: int, world_size: int) -> Group:
        place = Environment("threads", rank, world_size, rank, world_size, None, None)
        transport = ThreadTransport(rank, self._meeting) if world_size > 1 else None
        return Group(place, torch.device("cpu"), "threads", transport)

    def run(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """Does the work of each rank's item in that rank's thread; the results in the order of the ranks.

        Raises:
            Exception: what the first rank that failed raised; the others are woken.
        """
        results: dict[int, R] = {}
        errors: dict[int, Exception] = {}

        def body(rank: int) -> None:
            try:
                results[rank] = work(items[rank])
            except Exception as error:  # raised again below, by the thread that asked
                errors[rank] = error
                self._meeting.barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,), name=f"rank {rank}") for rank in range(len(items))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            # Who was woken in vain says nothing of the cause.
            woken = threading.BrokenBarrierError
            raise next(
                (error for _, error in sorted(errors.items()) if not isinstance(error, woken)), errors[min(errors)]
            )
        return [results[rank] for rank in range(len(items))]
