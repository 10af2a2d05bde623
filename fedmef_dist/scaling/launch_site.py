"""Where a study's ranks run, and what starts them: this package, srun in an allocation, or mpirun."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.environment import MOST_RANKS_OF_A_NODE, detect
from fedmef_dist.cluster.local_ranks import run_ranks, wait_for
from fedmef_dist.cluster.mpirun import find_mpirun, run_under
from fedmef_dist.cluster.slurm import expand_hosts, expand_tasks


@dataclass(frozen=True)
class LaunchSite:
    """Nodes, and how ranks are started on them.

    Attributes:
        tasks_per_node: ranks that each node has room for; None: this machine alone.
        hosts: names of the nodes, for mpirun; empty where it finds them itself.
        mpirun: the command and its options; empty: srun in an allocation, processes of our own on this machine.
    """

    tasks_per_node: tuple[int, ...] | None
    hosts: tuple[str, ...] = ()
    mpirun: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.tasks_per_node is None:
            return "one machine, by mpirun" if self.mpirun else "one machine"
        nodes = f"{len(self.tasks_per_node)} nodes with {sum(self.tasks_per_node)} tasks"
        return f"{nodes}, by mpirun" if self.mpirun else f"an allocation of {nodes}"

    def check(self, ranks: int) -> None:
        """Raises UserError where there is no room for so many ranks."""
        if self.tasks_per_node is None and ranks > MOST_RANKS_OF_A_NODE:
            raise UserError(
                f"one machine starts {MOST_RANKS_OF_A_NODE:,} ranks at the most, not {ranks:,}",
                where="--ranks",
                mend="measure few ranks here, and predict many: --predict",
            )
        if self.tasks_per_node is not None and ranks > sum(self.tasks_per_node):
            raise UserError(
                f"there are {sum(self.tasks_per_node)} tasks on {len(self.tasks_per_node)} nodes, not {ranks}",
                where="--ranks",
                mend="ask for more nodes or tasks, or measure fewer ranks",
            )

    def probes(self, ranks: Sequence[int]) -> list[tuple[int, bool]]:
        """On how many ranks the network is measured, and whether each has a node of its own."""
        nodes = 1 if self.tasks_per_node is None else len(self.tasks_per_node)
        here = max(ranks) if self.tasks_per_node is None else self.tasks_per_node[0]
        inside = sorted({number for number in ranks if 1 < number <= here})
        spread = sorted({2, nodes} & set(range(2, nodes + 1)))
        return [*((number, False) for number in inside), *((number, True) for number in spread)]

    def local_ranks(self, ranks: int) -> int:
        """How many of the ranks share a node."""
        return ranks if self.tasks_per_node is None else min(ranks, self.tasks_per_node[0])

    def run(self, arguments: Sequence[str], ranks: int, log: Path, *, spread: bool = False) -> int:
        """Run ``fedmef-dist ARGUMENTS`` on so many ranks; returns the exit status. What they print goes to ``log``.

        ``spread`` puts each rank on a node of its own.
        """
        with log.open("wb") as output:
            if self.mpirun:
                return run_under([*self.mpirun, *self._named_hosts(spread)], arguments, ranks, output)
            if self.tasks_per_node is None:
                return run_ranks(arguments, ranks, output)
            program = [sys.executable, "-m", "fedmef_dist", *arguments]
            return wait_for([([*self._srun(ranks, spread), *program], os.environ)], output)

    def _named_hosts(self, spread: bool) -> list[str]:
        if not self.hosts:
            return []
        # Both Open MPI and MPICH fill the hosts one after another.
        rooms = zip(self.hosts, self.tasks_per_node or (), strict=True)
        return ["--host", ",".join(f"{host}:{1 if spread else tasks}" for host, tasks in rooms)]

    def _srun(self, ranks: int, spread: bool) -> list[str]:
        assert self.tasks_per_node is not None
        nodes = ranks if spread else -(-ranks // self.tasks_per_node[0])
        threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        step = [f"--nodes={nodes}", f"--ntasks={ranks}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=0"]
        return ["srun", *step, "--wait=30"]


def find_place(backend: str = "auto", hosts: str = "") -> LaunchSite:
    """The machine itself, the allocation whose batch script runs here, or hosts, named as ``node1:8,node2:8``.

    mpirun starts the ranks of ``runtime.backend: mpi``, and those on named hosts.

    Raises:
        UserError: inside a launcher's rank; where the hosts are no such list; where mpirun is needed and not there.
    """
    environment = detect(os.environ)
    if environment.launcher != "single":
        raise UserError(
            f"scale starts its ranks itself, {environment.launcher} has started it",
            where="command line",
            mend="call it without a launcher; inside an allocation it uses srun",
        )
    if hosts:
        names, places = _read_hosts(hosts)
        return LaunchSite(places, names, find_mpirun("--hosts"))
    mpirun = find_mpirun("runtime.backend: mpi") if backend == "mpi" else ()
    if "SLURM_JOB_ID" not in os.environ or "SLURM_TASKS_PER_NODE" not in os.environ:
        return LaunchSite(None, (), mpirun)
    tasks = tuple(expand_tasks(os.environ["SLURM_TASKS_PER_NODE"]))
    return LaunchSite(tasks, tuple(expand_hosts(os.environ["SLURM_JOB_NODELIST"])) if mpirun else (), mpirun)


def _read_hosts(text: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    found = [re.fullmatch(r"([\w.-]+):([1-9]\d{0,3})", word.strip()) for word in text.split(",")]
    places = [(match[1], int(match[2])) for match in found if match is not None]
    if len(places) < len(found) or len({name for name, _ in places}) < len(places):
        raise UserError(
            f"{text!r} is not a list of hosts, each with its number of ranks",
            where="--hosts",
            mend="write for example --hosts node1:8,node2:8",
        )
    return tuple(name for name, _ in places), tuple(tasks for _, tasks in places)
