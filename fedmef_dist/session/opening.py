"""What a run says of itself before its first round: what runs where, and how much memory that takes."""

import resource
import socket
from pathlib import Path

import torch

from fedmef_dist.cluster.environment import nodes_of
from fedmef_dist.cluster.group import Group
from fedmef_dist.session.memory import RunMemory
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.tracker import Metrics

_KIBIBYTE = 1024
_SUM_BYTES = 8  # of a value in a round's fixed-point sum


def opening_lines(simulation: Simulation, run_dir: Path, memory: RunMemory) -> list[str]:
    """Four lines; ``memory`` has measured a training step here, so that the process has held what that takes."""
    config, group = simulation.config, simulation.group
    federation, memory_of_step = config.federation, memory.metrics()
    density = getattr(config.method, "density", 1.0)
    begun = f", goes on after round {simulation.round}" if simulation.round else ""
    return [
        f"{config.name}: {config.method.name} on {config.data.dataset}, {config.model.name}"
        f"{f' at density {density:g}' if density < 1 else ''}",
        f"{_counted(federation.rounds, 'round')}, {federation.clients_per_round} of {federation.clients} clients in "
        f"each{begun}; files in {run_dir}",
        _ranks(group),
        f"memory: about {_megabytes(_rank_bytes(simulation, memory_of_step))} a rank, "
        f"{_megabytes(memory_of_step['memory/device_bytes'])} on a simulated device",
    ]


def _ranks(group: Group) -> str:
    """How many, with what, where, and who has started them: "2 ranks with 1 thread each on host, cpu, by torchrun"."""
    place, threads = group.environment, torch.get_num_threads()
    nodes = nodes_of(place)
    host = socket.gethostname() if nodes == 1 else f"{nodes} nodes, the first of them {socket.gethostname()}"
    launcher = "without a launcher" if place.launcher == "single" else f"started by {place.launcher}"
    each = " each" if group.world_size > 1 else ""
    ranks = f"{_counted(group.world_size, 'rank')} with {_counted(threads, 'thread')}{each}"
    return f"{ranks} on {host}, {group.device.type}, {launcher}"


def _rank_bytes(simulation: Simulation, step: Metrics) -> float:
    """The memory that a rank like this one will have used at its peak.

    What it has used so far, two buffers of a round's sum, and with several slots a ``step`` in each.
    """
    config = simulation.config
    slots = min(config.runtime.slots, config.federation.clients_per_round)
    more = 2 * _SUM_BYTES * simulation.space.total + (slots * float(step["memory/peak_bytes"]) if slots > 1 else 0)
    if simulation.group.device.type == "cuda":
        return torch.cuda.max_memory_allocated(simulation.group.device) + more
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE + more


def _megabytes(size: float | int | str) -> str:
    return f"{float(size) / 1e6:,.{0 if float(size) >= 1e8 else 1}f} MB"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
