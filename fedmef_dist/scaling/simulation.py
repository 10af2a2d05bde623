"""The same rounds replayed by SimGrid (Casanova and others, JPDC 2014): message by message, on a described cluster.

The ranks' compute and messages are written as time-independent traces, one file a rank, and replayed by
``smpirun -replay`` on a platform made from the same cluster. What SMPI knows as an algorithm of MPI (ring, recursive
doubling, halving and doubling) it plays itself; the two-level all-reduce is spelled out in messages.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.cluster.collective_costs import Backend, Network, choose_all_reduce
from fedmef_dist.scaling.cost_model import SMALL_BYTES, CostModel, Work
from fedmef_dist.scaling.prediction import Predictor
from fedmef_dist.sums.placement import assign

_PROGRAM = "smpirun"
_OPTIONS = (
    # The links of the description as they are: no factors that SMPI has measured on a cluster of its own.
    "--cfg=network/model:CM02", "--cfg=network/bandwidth-factor:1", "--cfg=network/latency-factor:1",
    "--cfg=network/weight-S:0", "--cfg=network/TCP-gamma:1e12",
)  # fmt: skip
_SMPI_NAMES = {"ring": "lr", "recursive doubling": "rdb", "halving and doubling": "rab_rdb"}
_FLOPS = 1e9  # of a simulated processor, so that a compute line says nanoseconds
_BYTE = 6  # MPI_BYTE in a trace
# NCCL's trees move a message in chunks, one close behind the other. SimGrid shares a link out among all that are on the
# way, so chunks would arrive together; an MPI algorithm of the same depth takes their place, in the formula as well.
_IN_PLACE_OF_TREES: Backend = "mpi"
_MARK = ".fedmef-dist"  # a folder that has it may be removed
_ROUNDS, _MANY_RANKS = 3, 1000  # on more ranks than these one round, whose messages are many enough


@dataclass(frozen=True)
class Simulated:
    """Seconds of a round, simulated and by the formula, for the same clients.

    The round evaluates and adjusts the mask if any round of the run does.
    """

    ranks: int
    cohort: int
    all_reduce: str
    simulated: float
    formula: float

    @property
    def error(self) -> float:
        """Of the formula, relative to the simulation."""
        return self.formula / self.simulated - 1


def find_simulator() -> str:
    """The path of SMPI's launcher. Raises UserError where it is not installed."""
    found = shutil.which(_PROGRAM)
    if found is None:
        raise UserError(
            "SimGrid is not installed: smpirun is not in the path",
            where="--simulate",
            mend="apt install libsimgrid-dev (Debian, Ubuntu) or see https://simgrid.org; or leave --simulate out",
        )
    return found


def simulate(predictor: Predictor, ranks: int, cohort: int, directory: Path) -> Simulated:
    """Replays a few rounds of so many clients on so many ranks; files are written into ``directory``, then removed.

    Raises:
        UserError: there is no simulator, it fails, or the folder is another's.
    """
    program, directory = find_simulator(), directory.resolve()
    refuse_strangers(directory)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    write_text(directory / _MARK, "")
    # Messages there find their receiver awake.
    model = replace(predictor.model, waking=0.0)
    network, samples = predictor.network(ranks), predictor.samples(cohort)
    work = replace(
        predictor.work, evaluated=float(predictor.work.evaluated > 0), adjusted=float(predictor.work.adjusted > 0)
    )
    algorithm = model.all_reduce_name(cohort, network, work)
    if algorithm == "tree":
        model = replace(model, backend=_IN_PLACE_OF_TREES)
        algorithm = model.all_reduce_name(cohort, network, work)
    write_text(directory / "platform.xml", platform(network))
    write_text(directory / "hosts", "".join(f"n{rank // network.local}:1\n" for rank in range(ranks)))
    for rank, lines in enumerate(_traces(model, network, samples, work)):
        (directory / f"{rank}").write_text("".join(f"{rank} {line}\n" for line in lines), encoding="ascii")
    write_text(directory / "traces", "".join(f"{directory / str(rank)}\n" for rank in range(ranks)))
    seconds = _replay(program, directory, ranks, algorithm) / _rounds(ranks)
    formula = sum(model.parts(samples, network, work).values())
    shutil.rmtree(directory)
    return Simulated(ranks, cohort, algorithm, seconds, formula)


def refuse_strangers(directory: Path) -> None:
    """Raises UserError where the folder of a simulation, which is removed, holds what no simulation has left."""
    if directory.exists() and not (directory / _MARK).exists():
        raise UserError(
            "a folder of that name is there already, and it is no simulation's",
            where=str(directory),
            mend="choose another --out, or take it away",
        )


def _rounds(ranks: int) -> int:
    return _ROUNDS if ranks <= _MANY_RANKS else 1


def platform(network: Network) -> str:
    """A cluster for SimGrid: each node with a duplex link of its own to a switch that never is too narrow."""
    inside, between = network.inside, network.between
    # A message between nodes crosses two links: each has half of the latency.
    links = (
        f'bw="{between.bandwidth:.6g}Bps" lat="{between.latency / 2:.6g}s" '
        f'loopback_bw="{inside.bandwidth:.6g}Bps" loopback_lat="{inside.latency:.6g}s"'
    )
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">\n'
        '<platform version="4.1">\n'
        f'  <cluster id="cluster" prefix="n" suffix="" radical="0-{network.nodes - 1}" speed="{_FLOPS:.0f}f" '
        f'core="{network.local}" {links}/>\n</platform>\n'
    )


def _replay(program: str, directory: Path, ranks: int, algorithm: str) -> float:
    choice = [f"--cfg=smpi/allreduce:{_SMPI_NAMES[algorithm]}"] if algorithm in _SMPI_NAMES else []
    files = ["-hostfile", directory / "hosts", "-platform", directory / "platform.xml"]
    command = [program, "-np", str(ranks), *files, *_OPTIONS, *choice, "-replay", directory / "traces"]
    # In its folder, where it leaves files of its own if it is stopped.
    done = subprocess.run(
        [*map(str, command)], cwd=directory, capture_output=True, text=True, errors="replace", check=False
    )
    found = re.search(r"Simulation time ([0-9.e+-]+)", done.stdout + done.stderr)
    if done.returncode or found is None:
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        raise UserError(
            f"SimGrid ended with status {done.returncode}: {' '.join(last)[:200]}",
            where=f"--simulate, {ranks} ranks",
            mend=f"keep {directory} and run it by hand: {' '.join(map(str, command))}",
        )
    return float(found[1])


def _traces(model: CostModel, network: Network, samples: np.ndarray, work: Work) -> Iterator[list[str]]:
    """Each rank's lines, without the rank's number in front."""
    ranks, crowd = network.ranks, 1 + model.crowding * (network.local - 1)
    costs = model.costs(samples, network.local)
    placement = assign(costs, ranks)
    draws = numpy_generator(0, "simulated jitter", ranks).standard_normal((_rounds(ranks), len(costs)))
    loads = [placement.loads(np.maximum(costs * (1 + model.jitter * draw), 0)) for draw in draws]
    before = model.draw * len(costs)
    server, behind = crowd * model.server, crowd * (model.evaluate / ranks)
    for rank in range(ranks):
        lines = ["init"]
        for load in loads:
            lines.append(_compute(before + load[rank]))
            lines += _all_reduce(rank, work.size(len(costs), ranks), network, model)
            lines.append(_compute(server))
            if work.adjusted:
                lines.append(f"bcast {max(int(work.reduce_bytes / 64), 1)} 0 {_BYTE}")
            lines.append(_compute(behind))
            if work.evaluated:
                lines += _all_reduce(rank, SMALL_BYTES, network, model)
            lines.append(_compute(crowd * model.rest))
        yield [*lines, "finalize"]


def _compute(seconds: float) -> str:
    return f"compute {seconds * _FLOPS:.0f}"


def _all_reduce(rank: int, size: float, network: Network, model: CostModel) -> list[str]:
    if network.ranks == 1:
        return []
    algorithm = choose_all_reduce(size, network, model.backend)
    if algorithm == "two-level":
        return _two_level(rank, size, network)
    return [f"allreduce {max(int(size), 1)} 0 {_BYTE}"]


def _ring(rank: int, members: Sequence[int], size: float, steps: int) -> list[str]:
    """So many steps in which each member gives its share of ``size`` to the next."""
    place, share = members.index(rank), max(int(size / len(members)), 1)
    after, before = members[(place + 1) % len(members)], members[place - 1]
    return [f"sendRecv {share} {after} {share} {before} {_BYTE} {_BYTE}"] * steps


def _two_level(rank: int, size: float, network: Network) -> list[str]:
    local, nodes = network.local, network.nodes
    node, own = divmod(rank, local)
    here = [node * local + other for other in range(local)]
    peers = [other * local + own for other in range(nodes)]
    return [
        *_ring(rank, here, size, 2 * (local - 1)),
        *_ring(rank, peers, size / local, 2 * (nodes - 1)),
        *_ring(rank, here, size, local - 1),
    ]
