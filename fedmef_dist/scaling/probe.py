"""How long all-reduces of several sizes take between the ranks that run this: what links are fitted to."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedmef_dist.base.atomic import write_json
from fedmef_dist.cluster.collective_costs import Backend
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.failure import ends_together
from fedmef_dist.cluster.group import Group, open_group
from fedmef_dist.config import load_config

_SIZES = (8, 8_000, 256_000, 4_000_000)
_SECONDS = 0.5  # for each size
_MOST = 50


@dataclass(frozen=True)
class Probe:
    """One size on one number of ranks.

    Attributes:
        ranks: of the group.
        local_ranks: that share a node.
        backend: that moved the bytes.
        size: bytes that each rank gives.
        seconds: of an all-reduce, median, on the slowest rank.
    """

    ranks: int
    local_ranks: int
    backend: Backend
    size: int
    seconds: float


def probe(path: Path, overrides: Sequence[str], out: Path) -> None:
    """On each rank of a launcher: times all-reduces with the configuration's backend; rank 0 writes ``out``."""
    config = load_config(path, overrides)
    with ends_together(detect()), open_group(detect(), config.runtime) as group, ends_together(group):
        found = [asdict(_time(group, size)) for size in _SIZES]
        if group.rank == 0:
            write_json(out, {"probes": found})


def _time(group: Group, size: int) -> Probe:
    tensor, seconds = torch.zeros(size // 8, dtype=torch.int64, device=group.device), []
    group.all_reduce(tensor)  # opens connections
    start = time.perf_counter()
    for _ in range(_MOST):
        group.barrier()
        before = time.perf_counter()
        group.all_reduce(tensor)
        seconds.append(time.perf_counter() - before)
        over = torch.tensor([int(time.perf_counter() - start > _SECONDS)], device=group.device)
        if int(group.all_gather(over).max()):
            break
    middle = torch.tensor([float(np.median(seconds))], dtype=torch.float64, device=group.device)
    slowest = float(group.all_gather(middle).max())
    local = group.environment.local_world_size
    return Probe(group.world_size, local, group.backend, size, slowest)  # type: ignore[arg-type]


def read_probes(path: Path) -> list[Probe]:
    """What :func:`probe` wrote."""
    return [Probe(**row) for row in json.loads(path.read_text(encoding="utf-8"))["probes"]]
