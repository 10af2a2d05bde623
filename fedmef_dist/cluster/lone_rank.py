"""One rank of many without the others, for measuring what a rank of a large cluster does besides waiting."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.gpu import same_bits
from fedmef_dist.cluster.group import Group, RuntimeSettings, choose_device, choose_threads


class LoneTransport:
    """Collectives that return at once, as if every other rank had given the same as this one."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size

    def all_reduce(self, tensor: Tensor) -> None:
        """So many times what this rank gives; integers wrap."""
        tensor *= self._world_size

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Leaves what is there."""

    def all_gather(self, output: Tensor, tensor: Tensor) -> None:
        """Repeats this rank's."""
        output[:] = tensor

    def barrier(self) -> None:
        """Waits for nobody."""

    def close(self) -> None:
        """Holds nothing."""


@contextmanager
def open_lone_group(
    rank: int, ranks: int, ranks_per_node: int, settings: RuntimeSettings, environ: Mapping[str, str] = os.environ
) -> Iterator[Group]:
    """A group in which this process is ``rank`` of ``ranks`` and the only one; threads and device as in a run.

    Raises UserError where the rank is impossible or the device is not to be had here.
    """
    local = min(ranks, ranks_per_node)
    place = Environment("lone rank", rank, ranks, rank % local, local, None, None)
    threads = torch.get_num_threads()
    torch.set_num_threads(choose_threads(settings, environ))
    try:
        device = choose_device(place, settings)
        with same_bits(device, tf32=settings.precision == "tf32"):
            yield Group(place, device, "gloo", LoneTransport(ranks))
    finally:
        torch.set_num_threads(threads)
