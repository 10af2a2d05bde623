"""A seeded world for the protocol of a run: one seed draws every order, delay, crash, signal and lost write.

    python tests/seeded_world.py --seed 17                 # replays one schedule and shows it
    python tests/seeded_world.py --seeds 1000 --first 0    # many, and how many a second

The code under test is that of the package: `session.simulate` with its owner, record, checkpoints, metrics and summary;
the loop's `run`; the round's sum with its stop counters; grace time, watch and guard. Simulated are the disk
(`seeded_disk.py`), the clocks of the hosts, their process tables and locks, the ranks' store, the transport, and the
training, a pure function of round and weights. A process is a thread of which only one runs at any time, the one that
the scheduler has drawn; it may be stopped, delayed or ended before any change of the disk and at any wait.

A schedule is a few starts of the same run, disturbed, and then undisturbed ones. Each start must end with status 0 and
the undisturbed digest, with 75, or with 1 or 2 and a message that its disturbances explain; one of the last ones must
end with 0, the right metrics, and a directory in which `verify` finds no gap. A checkpoint that was reported as written
is never lost.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import seeded_run
from seeded_disk import Disk
from seeded_scheduler import Killed, Process, Scheduler, WrongError

from fedmef_dist.base.errors import FilesLostError, UserError
from fedmef_dist.cluster.transport import PeerLostError
from fedmef_dist.runs.owner_record import SILENCE_SECONDS
from fedmef_dist.runs.verify import verify

BUSY = "another run is writing here"
ROOM, GONE = "No space left", "No such file"
CALM_STARTS = 4
KILL_SECONDS, NEVER = 30.0, 1e9


class World(Scheduler):
    """One schedule.

    Args:
        seed: of everything that is drawn.
        root: an empty folder on a memory file system.
    """

    def __init__(self, seed: int, root: Path) -> None:
        super().__init__(random.Random(f"world {seed}"))
        self.run_dir = root / "run"
        self.disk = Disk(root, self, self.rng)
        self.locks_are = self.rng.choice(["of the kernel", "of the host", "missing"])
        self.skews = {host: self.rng.choice([0.0, 0.0, -3000.0, 3000.0]) for host in ("n1", "n2", "n3")}
        self.boots, self.booted_at = dict.fromkeys(self.skews, 0), dict.fromkeys(self.skews, -(10.0**5))
        self.locks: dict[tuple[int, str], tuple[Process, int]] = {}
        self.leases: dict[tuple[int, str], float] = {}
        self.owned: dict[int, tuple[int, str]] = {}
        self.jobs: list[Job] = []
        self.number = self.restarts = 0
        self.was_full = self.took_over = self.was_silent = False
        self.safe_round = 0
        self.newest: Any = None
        self.root = str(root)
        self.note(f"locks are {self.locks_are}, clocks are off by {self.skews}")

    def note(self, text: str) -> None:
        super().note(text.replace(self.root, ""))  # the only part of a trace that is not the seed's

    # --- what processes meet

    def lock(self, handle: int, inode: int) -> bool:
        """An exclusive lock; whether it was free."""
        key = (inode, self.caller.host if self.locks_are == "of the host" else "")
        if key in self.locks or self.leases.get(key, 0.0) > self.now:
            return False
        self.locks[key], self.owned[handle] = (self.caller, handle), key
        return True

    def unlock(self, handle: int) -> None:
        key = self.owned.pop(handle, None)
        if key is not None:
            del self.locks[key]

    def saved(self, round_number: int) -> None:
        """The run's newest owner has been told that its checkpoint is on the disk."""
        if self.caller.job is self.newest:
            self.safe_round = round_number

    def begins(self, round_number: int) -> None:
        """A start has found what it goes on from."""
        self.note(f"begins behind round {round_number}")
        self.caller.began = True
        owners = [str(process) for process in self.processes if process.alive and process.began]
        if len(owners) > 1 and (self.locks_are == "of the kernel" or not self.was_silent):
            raise WrongError(f"two own the directory: {owners}")
        if round_number < self.safe_round and not self.took_over:
            raise WrongError(f"the checkpoint of round {self.safe_round} is lost: it begins behind {round_number}")
        self.newest = self.caller.job

    def exit(self, status: int) -> None:
        """Ends the process that calls, as :func:`os._exit` does."""
        self.leave(self.acting, status)
        raise Killed

    def leave(self, process: Process, status: int) -> None:
        if process.alive:
            process.status = status
            self.note(f"{process} ends itself with {status}")
            self.kill([process])
            self.at(self.now + KILL_SECONDS, "the launcher ends the job", lambda: self.kill(process.job.ranks))

    # --- disturbances

    def lose_host(self, host: str) -> None:
        """The host is gone for good, and boots anew; a file server frees its locks some time later."""
        held = [key for key, (process, _) in self.locks.items() if process.host == host]
        self.kill([process for process in self.processes if process.host == host])
        if self.locks_are == "of the kernel":
            until = self.now + self.rng.uniform(0, 120)
            self.leases |= dict.fromkeys(held, until)
        self._boot([host])

    def cut_power(self) -> None:
        """Of everything."""
        self.kill(self.processes)
        self.leases.clear()
        self.outside(self.disk.cut_power)
        self._boot([*self.skews])

    def _boot(self, hosts: list[str]) -> None:
        for host in hosts:
            self.boots[host], self.booted_at[host] = self.boots[host] + 1, self.now

    def kill(self, processes: list[Process]) -> None:
        for process in [process for process in processes if process.alive]:
            process.alive = False
            self.outside(lambda process=process: self.disk.close_all(process))

    def fill(self, seconds: float) -> None:
        self.disk.full = self.was_full = True
        self.at(self.now + seconds, "there is room again", lambda: setattr(self.disk, "full", False))

    def disturb(self, job: "Job") -> None:
        """Draws what happens to a start, and when."""
        rank = self.rng.choice(job.ranks)
        kind = self.rng.choice(
            ["kill", "kill at a write", "power", "power at a write", "host", "signal", "stop", "full"]
        )
        when = self.now + self.rng.uniform(0, self.rng.choice([1, 12, 12, 40]))
        if kind.endswith("at a write"):
            end = self.cut_power if kind.startswith("power") else lambda: self.kill([job.ranks[0]])
            job.ranks[0].ends_at = self.rng.randint(1, self.rng.choice([20, 120])), end
            return self.note(f"to come: {kind} {job.ranks[0].ends_at[0]}")
        seconds = self.rng.choice([5.0, 30.0, 100.0, 220.0])
        self.was_silent |= kind == "stop" and seconds >= SILENCE_SECONDS
        {
            "kill": lambda: self.at(when, f"{rank} is killed", lambda: self.kill([rank])),
            "power": lambda: self.at(when, "a power cut", self.cut_power),
            "host": lambda: self.at(when, f"{rank.host} is lost", lambda: self.lose_host(rank.host)),
            "signal": lambda: self.signal(job, when),
            "stop": lambda: self.at(when, f"{rank} stops for {seconds:g} s", lambda: rank.stop(self.now + seconds)),
            "full": lambda: self.at(when, f"the disk is full for {seconds:g} s", lambda: self.fill(seconds)),
        }[kind]()

    def signal(self, job: "Job", when: float) -> None:
        """One rank or all are asked to stop; whoever is there half a minute later is killed."""
        asked = job.ranks if self.rng.random() < 0.5 else [self.rng.choice(job.ranks)]
        for process in asked:
            soon = when + self.rng.uniform(0, 0.5)
            self.at(soon, f"{process} is asked to stop", lambda process=process: process.ask(job, process))
        if self.rng.random() < 0.7:
            self.at(when + KILL_SECONDS, "the launcher's patience ends", lambda: self.kill(job.ranks))

    # --- the schedule

    def start(self) -> "Job":
        """Starts the run once more, as a new job or as a requeued one, on hosts of the scheduler's choice."""
        requeued = self.jobs and self.rng.random() < 0.5
        self.number, self.restarts = (self.number, self.restarts + 1) if requeued else (self.number + 1, 0)
        job = Job(self, self.number, self.restarts)
        others = [other for other in self.jobs if other.alive]
        self.was_silent |= bool(requeued and others)  # Slurm's word was that its former processes are dead
        for one in [job, *others] if others else []:
            one.overlapped = True
            # Without a lock that all hosts share, a start may take over from a process that still lives.
            self.took_over |= self.locks_are != "of the kernel"
        self.jobs.append(job)
        self.note(f"start: {job}")
        job.launch()
        return job

    def play(self) -> None:
        """The disturbed starts, then the undisturbed ones. Raises WrongError."""
        for _ in range(self.rng.choice([0, 1, 1, 2, 3])):
            job = self.start()
            for _ in range(self.rng.choice([1, 1, 2])):
                self.disturb(job)
            patience = self.rng.uniform(0, self.rng.choice([3, 15, 100, NEVER, NEVER]))
            self.run(lambda job=job: not job.alive, self.now + patience)
            pause = self.rng.choice([0.0, 0.0, 1.0, 70.0])
            self.now += pause
            self.was_silent |= pause >= SILENCE_SECONDS
        self.run(lambda: not any(job.alive for job in self.jobs))
        self.forget_events()
        self.disk.full = False
        for _ in range(CALM_STARTS):
            job = self.start()
            self.run(lambda job=job: not job.alive)
            if job.statuses() == {0}:
                return self.check_end(job)
        raise WrongError(f"no undisturbed start has come to the end: {job.statuses()}")

    def check_end(self, job: "Job") -> None:
        """The directory of a run that has ended with status 0."""
        metrics, digest = seeded_run.expected()
        if (self.run_dir / "metrics.jsonl").read_bytes() != metrics:
            raise WrongError("metrics.jsonl is not that of the undisturbed run")
        if f'"model/digest": "{digest}"' not in (self.run_dir / "summary.json").read_text():
            raise WrongError("summary.json has not the undisturbed digest")
        try:
            verify(self.run_dir)
        except UserError as error:
            raise WrongError(f"verify finds a gap: {error}") from None
        self.note(f"{job} has the undisturbed digest")

    def ended(self, process: Process, error: BaseException | None) -> None:
        """How a rank has ended; takes the whole job along as a launcher does."""
        job = process.job
        process.status, process.message = self.judge(process, error)
        self.note(f"{process} ends with {process.status} {process.message}")
        process.alive = False
        self.outside(lambda: self.disk.close_all(process))
        if (
            process.status == 0
            and process.rank == 0
            and not any(other.alive for other in self.jobs if other is not job)
        ):
            self.outside(lambda: self.check_end(job))
        if process.status not in (0, 75):
            self.at(self.now + KILL_SECONDS, "the launcher ends the job", lambda: self.kill(job.ranks))

    def judge(self, process: Process, error: BaseException | None) -> tuple[int, str]:
        """Status and message. Raises WrongError where nothing explains them."""
        if error is None:
            return 0, ""
        if isinstance(error, WrongError):
            raise error
        if isinstance(error, SystemExit):
            if error.code != 75 or not process.job.was_asked:
                raise WrongError(f"{process} leaves with {error.code} unasked")
            return 75, ""
        if isinstance(error, PeerLostError):
            if not process.job.was_hurt:
                raise WrongError(f"{process} has lost a peer: {error}")
            return 1, str(error)
        if isinstance(error, FilesLostError):
            if not self.took_over:
                raise WrongError(f"{process} has lost its files: {error}")
            return 1, str(error)
        if isinstance(error, UserError):
            explained = (
                (BUSY in error.what and len(self.jobs) > 1)
                or (ROOM in error.what and self.was_full)
                or (GONE in error.what and process.job.overlapped)  # another start has cleared up behind it
            )
            if not explained:
                raise WrongError(f"{process} is refused: {error}")
            return 2, error.what
        raise WrongError("".join(traceback.format_exception(error)))


class Job:
    """One start of the run: its ranks, their store and their transport."""

    def __init__(self, world: World, number: int, restarts: int) -> None:
        self.world, self.number, self.restarts = world, number, restarts
        self.was_asked = self.overlapped = False
        self.store = seeded_run.Store(world, self)
        self.meeting = seeded_run.Meeting(world, self)
        self.boards: dict[str, bytearray] = {}
        size, hosts = world.rng.choice([1, 2, 3]), world.rng.sample(sorted(world.skews), 2)
        self.ranks = [Process(world, self, rank, world.rng.choice(hosts[: 1 + rank])) for rank in range(size)]

    def launch(self) -> None:
        for process in self.ranks:
            process.spawn("main", lambda process=process: seeded_run.main(self.world, process))
            self.world.every(1.0, process, lambda process=process: seeded_run.tick(self.world, process))

    @property
    def alive(self) -> bool:
        return any(process.alive for process in self.ranks)

    @property
    def was_hurt(self) -> bool:
        return any(
            process.was_stopped or (not process.alive and process.status not in (0, 75)) for process in self.ranks
        )

    def statuses(self) -> set[int | None]:
        return {process.status for process in self.ranks}

    def __str__(self) -> str:
        return f"job {self.number}.{self.restarts} on {', '.join(process.host for process in self.ranks)}"


def play(seed: int, parent: Path | None = None) -> World:
    """Plays the schedule of one seed. Raises WrongError, with the seed and how to see its schedule."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="world-", dir=parent or (memory if memory.is_dir() else None)))
    world = World(seed, root)
    try:
        with ExitStack() as patches:
            for target, values in seeded_run.replacements(world):
                for name, value in values.items():
                    patches.enter_context(mock.patch.object(target, name, value))
            with world.disk.mounted():
                try:
                    world.play()
                finally:
                    world.bury()
    except WrongError as error:
        again = f"python tests/seeded_world.py --seed {seed}"
        raise WrongError(f"seed {seed}: {error}\nsee it with: {again}\n" + "\n".join(world.trace[-25:])) from None
    finally:
        shutil.rmtree(root)
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="the one whose schedule is shown")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    if options.seed is not None:
        try:
            print(*play(options.seed).trace, sep="\n")
        except WrongError as error:
            sys.exit(str(error))
        return
    began, wrong = time.perf_counter(), []
    for seed in range(options.first, options.first + options.seeds):
        try:
            play(seed)
        except WrongError as error:
            wrong.append(seed)
            print(error, flush=True)
    seconds = time.perf_counter() - began
    print(f"{options.seeds} schedules, {len(wrong)} wrong {wrong}, {options.seeds / seconds:.1f} a second")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
