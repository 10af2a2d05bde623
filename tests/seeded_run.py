"""A run in the seeded world: the package's own protocol around a training that is a pure function.

`replacements` says what of the package is another thing here; everything else is the code that users run.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from seeded_scheduler import EPOCH, Killed, Process, WrongError
from torch import Tensor

from fedmef_dist.base import atomic, lock_file
from fedmef_dist.cluster import board, guard, interruption, relay, watch
from fedmef_dist.cluster.board import Board
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.cluster.guard import Verdict
from fedmef_dist.cluster.interruption import GraceTime, Interruption, RoundAbandonedError
from fedmef_dist.cluster.progress import Progress
from fedmef_dist.cluster.transport import PeerLostError
from fedmef_dist.runs import checkpoint, directory, owner, owner_record
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.runs.owner_record import ProcessIdentity
from fedmef_dist.session import beginning, session
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.sums.round_sum import RoundResult, RoundSum
from fedmef_dist.tracking import METRICS, WandbSettings, jsonl, tracker

ROUNDS, CLIENTS, BATCHES, BATCH_SECONDS = 4, 4, 2, 0.25
TREE = {"federation": {"rounds": ROUNDS}, "optimizer": {"schedule": "constant"}}
MASK = hashlib.sha256(b"mask").digest()
CPU = torch.device("cpu")
FIRST = torch.arange(3, dtype=torch.float32)


def train(values: Tensor, round_number: int, slot: int) -> Tensor:
    """What a client makes of the weights: float32 (3,)."""
    return torch.sin(values + 1.7 * slot + round_number)


def line(round_number: int, values: Tensor, result: RoundResult) -> dict[str, Any]:
    return {"round": round_number, "train/loss": result.loss, "model/digest": digest(values)}


def digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def add_client(total: RoundSum, values: Tensor, round_number: int, slot: int) -> None:
    total.add(slot, train(values, round_number, slot), 1, 0.5 + slot / round_number, 0.1, 1)


@cache
def expected() -> tuple[bytes, str]:
    """metrics.jsonl and the digest of the undisturbed run, on one rank."""
    group, values, lines = Group(Environment("single", 0, 1, 0, 1, None, None), CPU, "gloo"), FIRST, b""
    for number in range(1, ROUNDS + 1):
        total = RoundSum(len(values), CLIENTS, CLIENTS, MASK, group)
        for slot in range(CLIENTS):
            add_client(total, values, number, slot)
        result = total.reduce()
        values = result.values
        lines += json.dumps(line(number, values, result)).encode() + b"\n"
    return lines, digest(values)


class Toy(Simulation):
    """The loop, which plays rounds of a training that is a pure function of round and weights."""

    def __init__(self, config: Any, group: Group, interruption: Any, timeline: Any, callbacks: Any) -> None:
        self.config, self.group, self.callbacks, self.world = config, group, callbacks, config.world
        self.grace = GraceTime(config.checkpoint.grace, interruption, group.watch)
        self.values, self.round, self.stopping = FIRST, 0, False
        self.parts, self.more_metrics, self.dataset = {"model": self}, dict, None
        self.method = SimpleNamespace(caution=lambda: None)

    def start(self, **_: Any) -> None:
        """The first weights are there already."""

    def state(self) -> dict[str, Any]:
        return {"values": self.values, "digest": digest(self.values)}

    def restore(self, state: dict[str, Any]) -> None:
        self.values = state["values"]

    def run(self, log: Callable[[Any], None], save: Callable[[], bool]) -> None:
        if self.group.rank == 0:
            self.world.begins(self.round)
        super().run(log, save)

    def play_round(self) -> dict[str, Any] | None:
        self.group.watch.place = f"round {self.round}"
        total = RoundSum(len(self.values), CLIENTS, CLIENTS, MASK, self.group)
        mine = range(self.group.rank, CLIENTS, self.group.world_size)
        try:
            self.grace.begin(len(mine))
            for slot in mine:
                for _ in self.grace.heed(range(BATCHES)):
                    self.world.wait(self.world.rng.uniform(0.5, 1.5) * BATCH_SECONDS)
                add_client(total, self.values, self.round, slot)
                self.grace.trained(1)
        except RoundAbandonedError:
            total.abandon()
        result = total.reduce(self.grace.asked)
        self.stopping = result.stopping
        if result.abandoned:
            return None
        self.values = result.values
        return line(self.round, self.values, result)


class Store:
    """The ranks' store; it lives in the process of rank 0, and stops and dies with it."""

    def __init__(self, world: Any, job: Any) -> None:
        self.world, self.job, self.values = world, job, {}

    def _reach(self) -> None:
        server = self.job.ranks[0]
        while server.stopped_until > self.world.now and self.world.current is not None:
            self.world.wait(0.5)
        if not server.alive:
            raise dist.DistNetworkError("Connection reset by peer")

    def set(self, key: str, value: Any) -> None:
        self._reach()
        self.values[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        self._reach()
        return self.values[key]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._reach()
        return [self.values.get(key, b"") for key in keys]

    def check(self, keys: list[str]) -> bool:
        self._reach()
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self._reach()
        self.values[key] = str(int(self.values.get(key, b"0")) + amount).encode()
        return int(self.values[key])

    def compare_set(self, key: str, old: str, new: str) -> bytes:
        self._reach()
        if self.values.get(key, b"") == old.encode():
            self.values[key] = new.encode()
        return self.values.get(key, b"")


class NodeBoard(Board):
    """The shared memory of a job's ranks on one host; the kernel knows who is dead."""

    def __init__(self, process: Process, members: tuple[int, ...]) -> None:
        memory = process.job.boards.setdefault(process.host, bytearray(len(members) * board._SLOT))
        super().__init__(memory, members, process.rank)
        self.job = process.job

    def is_dead(self, rank: int) -> bool:
        return not self.job.ranks[rank].alive


class Meeting:
    """Where the ranks of a job come together for a collective; it breaks when one of them is gone."""

    def __init__(self, world: Any, job: Any) -> None:
        self.world, self.job, self.done = world, job, 0
        self.arrived: dict[int, tuple[str, Any, Any]] = {}

    def meet(self, rank: int, kind: str, tensor: Any, output: Any = None) -> None:
        self.world.alive()
        mine, ranks = self.done, self.job.ranks
        self.arrived[rank] = kind, tensor, output
        if len(self.arrived) == len(ranks) and not self._is_broken():
            self._perform(kind)
        while not self.world.wait(float("inf"), lambda: self.done > mine or self._is_broken()):
            pass
        if self.done == mine:
            self.world.wait(self.world.rng.uniform(0, 2))
            raise PeerLostError(f"{kind}: Connection closed by peer")

    def _is_broken(self) -> bool:
        return not all(process.alive for process in self.job.ranks)

    def _perform(self, kind: str) -> None:
        arrived = [self.arrived[rank] for rank in range(len(self.job.ranks))]
        if len({(one[0], None if one[1] is None else one[1].shape) for one in arrived}) > 1:
            raise WrongError(f"the ranks meet in different collectives: {arrived}")
        tensors = [tensor for _, tensor, _ in arrived]
        if kind == "sum":
            total = torch.stack(tensors).sum(0)
            for tensor in tensors:
                tensor.copy_(total)
        elif kind == "copy":
            for tensor in tensors[1:]:
                tensor.copy_(tensors[0])
        self.arrived, self.done = {}, self.done + 1


class Transport:
    """One rank's way to the others."""

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank = meeting, rank

    def all_reduce(self, tensor: Tensor) -> None:
        self.meeting.meet(self.rank, "sum", tensor)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        self.meeting.meet(self.rank, "copy", tensor)

    def barrier(self) -> None:
        self.meeting.meet(self.rank, "barrier", None)


def main(world: Any, process: Process) -> None:
    """A rank's main thread."""
    size, rank = len(process.job.ranks), process.rank
    world.wait(world.rng.uniform(0, 2))
    alone = size == 1
    environment = Environment("single" if alone else "srun", rank, size, 0, 1, "n", 1)
    transport, store = (None, None) if alone else (Transport(process.job.meeting, rank), process.job.store)
    group = Group(environment, CPU, "gloo", transport, store)
    if store is not None and rank == 0:
        store.set("watch/deadline", "")
        store.set("watch/call", "")
    group.watch.progress, group.watch.ends_process = Progress(world.monotonic), True
    hosts = [one.host for one in process.job.ranks]
    nodes = sorted(tuple(rank for rank in range(size) if hosts[rank] == host) for host in set(hosts))
    members = next(ranks for ranks in nodes if rank in ranks)
    group.watch.share(nodes, NodeBoard(process, members))
    process.verdict = Verdict()
    process.interruption, process.watch = Interruption(), group.watch
    session.simulate(world.config, group, world.run_dir, "auto", process.interruption)


def tick(world: Any, process: Process) -> None:
    """One look of the threads that watch the others."""
    view = process.watch
    if view is None or view._store is None:
        return
    if process.job.ranks[0].stopped_until <= world.now and view.lost is None:
        try:
            view._turn()
        except dist.DistError as error:
            view.lost = f"the ranks' store is gone: {error}"
    cause = process.verdict.look(view._signs())
    if cause is not None:
        process.verdict = Verdict()
        process.spawn("guard", lambda: view._end(cause))


# --- what is another thing here


class Event:
    """Of :mod:`threading`."""

    def __init__(self, world: Any) -> None:
        self.world, self.is_up = world, False

    def set(self) -> None:
        self.is_up = True

    def is_set(self) -> bool:
        return self.is_up

    def wait(self, timeout: float) -> bool:
        return self.is_up or self.world.wait(timeout, lambda: self.is_up)


class Thread:
    """Of :mod:`threading`; a thread of the process that starts it."""

    def __init__(self, world: Any, target: Callable[[], None], name: str) -> None:
        self.world, self.target, self.name, self.task = world, target, name, None

    def start(self) -> None:
        self.task = self.world.acting.spawn(self.name, self.target)

    def join(self, timeout: float) -> None:
        if not self.task.done:
            self.world.wait(timeout, lambda: self.task.done)


class Timer:
    """Of :mod:`threading`."""

    daemon = False

    def __init__(self, world: Any, seconds: float, action: Callable[[int], None], arguments: tuple[int]) -> None:
        self.world, self.seconds, self.status, self.process = world, seconds, arguments[0], world.acting

    def start(self) -> None:
        when = self.world.now + self.seconds
        self.world.at(when, "", lambda: self.world.leave(self.process, self.status), self.process)


def replacements(world: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Modules and what their names mean while the world's schedule is played."""
    world.config = configuration(world)
    clock = SimpleNamespace(time=world.time, monotonic=world.monotonic, sleep=world.wait)
    threads = SimpleNamespace(
        Event=lambda: Event(world),
        Thread=lambda target, name, daemon: Thread(world, target, name),
        Timer=lambda *arguments: Timer(world, *arguments),
    )
    tokens = SimpleNamespace(token_hex=lambda length: f"{world.rng.getrandbits(8 * length):0{2 * length}x}")
    locks = SimpleNamespace(LOCK_EX=0, LOCK_NB=0, flock=lambda handle, how: lock(world, handle))
    yield atomic, {"secrets": tokens}
    yield lock_file, {"fcntl": locks}
    yield guard, {"time": clock}
    yield interruption, {"time": clock}
    yield board, {"time": clock}
    yield relay, {"time": clock, "tell": world.note}
    yield watch, {"time": clock, "threading": threads, "tell": world.note, "os": SimpleNamespace(_exit=world.exit)}
    yield owner, {"time": clock, "threading": threads, "secrets": tokens, "tell": world.note}
    yield owner, {"here": lambda: here(world), "_LOOK_SECONDS": 1.0}
    running = {"_is_running": lambda pid, started: is_running(world, pid), "_boot_time": lambda: boot_time(world)}
    yield owner_record, {"time": clock, **running}
    for module in (checkpoint, directory, jsonl, tracker, session):
        yield module, {"tell": world.note}
    yield session, session_parts(world)
    yield beginning, {"to_tree": lambda _: TREE, "take_weights": lambda _: None}


def session_parts(world: Any) -> dict[str, Any]:
    """What the session makes of its parts that have nothing to do with the protocol."""

    class NotedStore(CheckpointStore):
        def try_save(self, checkpoint: Any) -> bool:
            done = super().try_save(checkpoint)
            if done:
                world.saved(checkpoint.state["round"])
            return done

    return {
        "Simulation": Toy,
        "CheckpointStore": NotedStore,
        "Callbacks": lambda *_: SimpleNamespace(
            **dict.fromkeys(CALLS, lambda *_: None), stopped=False, wants_save=False, kept_round=None
        ),
        "RunMemory": lambda *_: SimpleNamespace(news=dict),
        "opening_lines": lambda *_: [],
        "to_tree": lambda _: TREE,
        "rank_log": lambda *_: nullcontext(),
        "open_trackers": lambda _settings, run_dir, _tree, _rounds, resumed, state, **_: jsonl.JsonlTracker(
            run_dir / METRICS, resumed, state
        ),
        "_summary": lambda toy, _: {"rounds": toy.round, "model/digest": digest(toy.values)},
        "notices": lambda dataset: [],
    }


CALLS = ("start", "round_start", "round_end", "checkpoint", "end")


def configuration(world: Any) -> Any:
    draw = world.rng.choice
    return SimpleNamespace(
        world=world,
        checkpoint=SimpleNamespace(every=draw([1, 2, 3]), keep=draw([1, 2]), grace=draw([1.0, 20.0])),
        tracking=SimpleNamespace(timeline=False, wandb=WandbSettings()),
        callbacks=[],
        fork=None,
        federation=SimpleNamespace(rounds=ROUNDS),
        begins_as=lambda rounds: rounds == ROUNDS,
    )


def lock(world: Any, handle: int) -> None:
    if world.locks_are == "missing":
        raise OSError(errno.ENOLCK, "No locks available")
    if not world.lock(handle, os.fstat(handle).st_ino):
        raise OSError(errno.EWOULDBLOCK, "Resource temporarily unavailable")


def here(world: Any) -> ProcessIdentity:
    process, boot = world.acting, world.boots[world.acting.host]
    return ProcessIdentity(
        host=process.host,
        boot=f"{process.host[1:]}-{boot}",
        pid=process.pid,
        started=process.pid,
        job=str(process.job.number),
        restarts=process.job.restarts,
    )


def is_running(world: Any, pid: int) -> bool:
    return any(one.pid == pid and one.alive and one.host == world.acting.host for one in world.processes)


def boot_time(world: Any) -> float:
    return EPOCH + world.booted_at[world.acting.host] + world.skews[world.acting.host]


__all__ = ["Killed", "Meeting", "Store", "expected", "main", "replacements", "tick"]
