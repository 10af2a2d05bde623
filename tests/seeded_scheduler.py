"""Processes of the seeded world: threads of which one at a time runs, the one that the scheduler has drawn."""

import random
import threading
from collections.abc import Callable
from typing import Any

_LIMIT_STEPS, _LIMIT_SECONDS = 200_000, 20_000.0
EPOCH = 1.8e9


class Killed(BaseException):
    """Unwinds a thread of a process that is dead; nothing that it still calls has an effect."""


class WrongError(AssertionError):
    """A schedule has not ended as it must."""


class Process:
    """A process on a host, with its threads.

    Attributes:
        status: that it has ended with; None while it lives and where it was killed.
        ends_at: before which of its changes of the disk what happens.
    """

    def __init__(self, world: "Scheduler", job: Any, rank: int, host: str) -> None:
        self.world, self.job, self.rank, self.host = world, job, rank, host
        self.pid = world.next_pid = world.next_pid + 1
        self.alive, self.began, self.was_stopped, self.stopped_until = True, False, False, 0.0
        self.status: int | None = None
        self.message = ""
        self.changes, self.ends_at = 0, None
        self.interruption: Any = None
        self.watch: Any = None
        self.verdict: Any = None
        world.processes.append(self)

    def spawn(self, name: str, body: Callable[[], Any]) -> "Task":
        """A new thread."""
        task = Task(self, name, body)
        self.world.tasks.append(task)
        return task

    def stop(self, until: float) -> None:
        """As SIGSTOP does, with SIGCONT at ``until``."""
        self.was_stopped, self.stopped_until = True, until

    def ask(self, job: Any, process: "Process") -> None:
        """As TERM does; one that comes before Python listens ends the process."""
        job.was_asked = True
        if process.interruption is None:
            self.world.kill([process])
        else:
            self.world.within(self, process.interruption.ask)

    def __str__(self) -> str:
        return f"{self.job.number}.{self.job.restarts}/{self.rank} on {self.host}"


class Task:
    """A thread of a process."""

    def __init__(self, process: Process, name: str, body: Callable[[], Any]) -> None:
        self.process, self.name, self.body = process, name, body
        self.wakes, self.condition, self.done = process.world.now, None, False
        self.turn = threading.Lock()
        self.turn.acquire()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        self.began = False

    def _run(self) -> None:
        world = self.process.world
        self.turn.acquire()
        try:
            if self.process.alive:
                self.body()
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        world.back.release()

    def is_ready(self, now: float) -> bool:
        if not self.process.alive:
            return True
        return self.process.stopped_until <= now and (
            self.wakes <= now or (self.condition is not None and self.condition())
        )


class Scheduler:
    """Draws who runs next, and when.

    Attributes:
        now: seconds since the world began.
        current: the thread that runs; None while the world itself does.
        trace: what has happened, a line each.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.now = rng, 0.0
        self.trace: list[str] = []
        self.tasks: list[Task] = []
        self.processes: list[Process] = []
        self.events: list[tuple[float, int, str, Callable[[], None], Process | None]] = []
        self.current: Task | None = None
        self.next_pid, self.counter, self.steps = 1000, 0, 0
        self.acting: Process | None = None
        self.back = threading.Lock()
        self.back.acquire()

    @property
    def caller(self) -> Any:
        """The process whose code runs; None where it is the world's own."""
        return self.acting

    def note(self, text: str) -> None:
        who = f"{self.acting} " if self.acting is not None else ""
        self.trace.append(f"{self.now:9.3f} {who}{text}")

    # --- what a process calls

    def alive(self) -> None:
        """Raises Killed where the process that calls is dead."""
        if not self.acting.alive:
            raise Killed

    def step(self, what: str) -> None:
        """Before a change of the disk: it may come later, or never."""
        self.alive()
        process = self.acting
        process.changes += 1
        if process.ends_at is not None and process.ends_at[0] == process.changes:
            self.note(f"ends before: {what}")
            process.ends_at[1]()
            raise Killed
        if self.current is not None and self.rng.random() < 0.15:
            self.wait(self.rng.choice([0.0, 0.01, 0.3, 3.0]))
        self.note(what)

    def wait(self, seconds: float, condition: Callable[[], bool] | None = None) -> bool:
        """Lets others run until the time is over, or until the condition holds; whether it does."""
        self.alive()
        task = self.current
        if task is None:  # the world's own look at a process waits for nobody
            return condition() if condition is not None else False
        task.wakes, task.condition = self.now + seconds, condition
        self.back.release()
        task.turn.acquire()
        self.alive()
        return condition() if condition is not None else False

    def time(self) -> float:
        """Unix time by the clock of the caller's host."""
        return EPOCH + self.now + (self.skews[self.acting.host] if self.acting is not None else 0.0)

    def monotonic(self) -> float:
        return 100.0 + self.now

    # --- what the world does

    def at(self, when: float, what: str, action: Callable[[], None], process: Process | None = None) -> None:
        self.counter += 1
        self.events.append((when, self.counter, what, action, process))

    def every(self, seconds: float, process: Process, action: Callable[[], None]) -> None:
        """Does something within a process again and again, as one of its threads would."""

        def again() -> None:
            if process.alive and process.status is None:
                if process.stopped_until <= self.now:
                    self.within(process, action)
                self.at(self.now + seconds, "", again, process)

        self.at(self.now + self.rng.uniform(0, seconds), "", again, process)

    def within(self, process: Process, action: Callable[[], Any]) -> None:
        before, self.acting = self.acting, process
        try:
            action()
        finally:
            self.acting = before

    def outside(self, action: Callable[[], Any]) -> None:
        before, self.acting = self.acting, None
        try:
            action()
        finally:
            self.acting = before

    def forget_events(self) -> None:
        """Nothing disturbs any more."""
        self.events = []

    def run(self, condition: Callable[[], bool], until: float = float("inf")) -> None:
        """Lets processes run until the condition holds or the time has come."""
        while not condition() and self.now < until:
            self.steps += 1
            if self.steps > _LIMIT_STEPS or self.now > _LIMIT_SECONDS:
                raise WrongError("the schedule does not come to an end")
            self._advance(until)

    def _advance(self, until: float) -> None:
        ready = [task for task in self.tasks if task.is_ready(self.now)]
        due = min(self.events, default=None, key=lambda event: event[:2])
        if due is not None and due[0] <= self.now:
            self.events.remove(due)
            if due[2]:
                self.note(due[2])
            due[3]()
        elif ready:
            self._turn(self.rng.choice(ready))
        else:
            moments = [max(task.wakes, task.process.stopped_until) for task in self.tasks]
            self.now = max(self.now, min([*moments, until, *([due[0]] if due is not None else [])]))

    def _turn(self, task: Task) -> None:
        if not task.began:
            task.began = True
            task.thread.start()
        self.current, self.acting = task, task.process
        task.turn.release()
        self.back.acquire()
        self.current = None
        if not task.done:
            self.acting = None
            return
        task.thread.join()
        self.tasks.remove(task)
        try:
            self._close(task)
        finally:
            self.acting = None

    def _close(self, task: Task) -> None:
        process = task.process
        if task.name == "main" and process.alive:
            self.ended(process, task.error)
        elif task.error is not None and process.alive:
            raise task.error

    def bury(self) -> None:
        """Ends what threads are left."""
        self.kill(self.processes)
        while self.tasks:
            self._turn(self.tasks[0])
