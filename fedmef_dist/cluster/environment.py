"""Which launcher started this process, and what it says about rank, world and meeting point.

Launchers are tried in the order of `_LAUNCHERS`, which matters: mpirun inside a batch job inherits the SLURM variables,
and torchrun may itself have been started by srun.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.slurm import expand_hosts, expand_tasks

# Below the range from which kernels take ephemeral ports (32768 on Linux), above what services use.
_FIRST_PORT, _PORTS = 15000, 17000
# More are a slip of the hand: no machine starts so many processes of PyTorch, and no cluster has so many processors.
MOST_RANKS_OF_A_NODE, MOST_RANKS = 1024, 2**20


@dataclass(frozen=True)
class Environment:
    """One process's place in the world, as its launcher tells it.

    `host` and `port` say where the ranks meet; both are None where the launcher does not say (MPI, single process).
    """

    launcher: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str | None
    port: int | None

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world_size and 0 <= self.local_rank < self.local_world_size <= self.world_size):
            raise UserError(
                (
                    f"impossible rank: rank {self.rank} of {self.world_size}, local rank {self.local_rank} of "
                    f"{self.local_world_size}"
                ),
                where=f"the environment variables of {self.launcher}",
                mend="start with one launcher, in a shell without variables left over from another",
            )

    @property
    def all_local(self) -> bool:
        """Whether every rank runs on this machine."""
        return self.local_world_size == self.world_size


def nodes_of(place: Environment) -> int:
    """How many nodes the ranks share, if each has as many ranks as this one's, or the last one fewer."""
    return -(-place.world_size // place.local_world_size)


def detect(environ: Mapping[str, str] = os.environ) -> Environment:
    """The launcher's word on this process: torchrun, openmpi, mpich, srun or single, in this order of precedence.

    Raises UserError where a launcher's variables are incomplete or impossible.
    """
    for applies, read in _LAUNCHERS:
        if applies(environ):
            return read(environ)
    return Environment("single", 0, 1, 0, 1, None, None)


def _any_of(*names: str) -> Callable[[Mapping[str, str]], bool]:
    return lambda environ: any(name in environ for name in names)


def _in_step(environ: Mapping[str, str]) -> bool:
    # A batch script and a salloc shell have SLURM_PROCID or the job's size, but only srun sets both of these.
    return "SLURM_STEP_NUM_TASKS" in environ and "SLURM_PROCID" in environ


def _hydra(environ: Mapping[str, str]) -> bool:
    # srun with a PMI plugin sets PMI_RANK too, but never Hydra's local rank.
    return "MPI_LOCALRANKID" in environ or (_any_of("PMI_RANK", "PMI_SIZE")(environ) and not _in_step(environ))


def _text(environ: Mapping[str, str], name: str, launcher: str) -> str:
    try:
        return environ[name]
    except KeyError:
        raise UserError(
            f"{name} is not set",
            where=f"the environment variables of {launcher}",
            mend=f"start with {launcher}, or unset its other variables",
        ) from None


def _number(environ: Mapping[str, str], name: str, launcher: str) -> int:
    text = _text(environ, name, launcher)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}={text!r} is not a number", where=f"the environment variables of {launcher}") from None


def _port(environ: Mapping[str, str], launcher: str) -> int:
    port = _number(environ, "MASTER_PORT", launcher)
    if not 0 < port < 1 << 16:
        raise UserError(
            f"MASTER_PORT={port} is no port",
            where=f"the environment variables of {launcher}",
            mend="choose one from 1024 to 65535",
        )
    return port


def _torchrun(environ: Mapping[str, str]) -> Environment:
    rank, size, local_rank, local_size = (_number(environ, name, "torchrun") for name in _TORCHRUN)
    host = _text(environ, "MASTER_ADDR", "torchrun")
    return Environment("torchrun", rank, size, local_rank, local_size, host, _port(environ, "torchrun"))


def _mpi(launcher: str, *names: str) -> Callable[[Mapping[str, str]], Environment]:
    def read(environ: Mapping[str, str]) -> Environment:
        rank, size, local_rank, local_size = (_number(environ, name, "mpirun") for name in names)
        return Environment(launcher, rank, size, local_rank, local_size, None, None)

    return read


def _srun(environ: Mapping[str, str]) -> Environment:
    node = _number(environ, "SLURM_NODEID", "srun")
    tasks = expand_tasks(_text(environ, "SLURM_STEP_TASKS_PER_NODE", "srun"))
    if node >= len(tasks):
        raise UserError(f"SLURM_NODEID={node} but SLURM_STEP_TASKS_PER_NODE names {len(tasks)} nodes")
    nodelist = environ.get("SLURM_STEP_NODELIST") or _text(environ, "SLURM_JOB_NODELIST", "srun")
    return Environment(
        "srun",
        _number(environ, "SLURM_PROCID", "srun"),
        _number(environ, "SLURM_STEP_NUM_TASKS", "srun"),
        _number(environ, "SLURM_LOCALID", "srun"),
        tasks[node],
        _srun_host(environ, node, nodelist),
        _srun_port(environ),
    )


def _srun_host(environ: Mapping[str, str], node: int, nodelist: str) -> str:
    """The node of rank 0: the first of the list, unless somebody placed the tasks by hand."""
    hosts = expand_hosts(nodelist)
    by_hand = environ.get("SLURM_DISTRIBUTION", "").startswith("arbitrary")
    elsewhere = node != 0 and environ.get("SLURM_PROCID") == "0"
    if len(hosts) == 1 or not (by_hand or elsewhere):
        return hosts[0]
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    raise UserError(
        "the tasks are placed by hand, so that task 0 may be on any node",
        where="srun --distribution=arbitrary, or SLURM_HOSTFILE",
        mend="export MASTER_ADDR with the name of task 0's node, the first line of the host file",
    )


def _srun_port(environ: Mapping[str, str]) -> int:
    if "MASTER_PORT" in environ:  # the way out where the computed port is taken
        return _port(environ, "srun")
    job, step = _number(environ, "SLURM_JOB_ID", "srun"), _number(environ, "SLURM_STEP_ID", "srun")
    return _FIRST_PORT + (job * 101 + step) % _PORTS


_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_OPENMPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_MPICH = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")

_LAUNCHERS: tuple[tuple[Callable[[Mapping[str, str]], bool], Callable[[Mapping[str, str]], Environment]], ...] = (
    (_any_of("RANK", "WORLD_SIZE", "LOCAL_RANK"), _torchrun),
    (_any_of(*_OPENMPI), _mpi("openmpi", *_OPENMPI)),
    (_hydra, _mpi("mpich", *_MPICH)),
    (_in_step, _srun),
)
