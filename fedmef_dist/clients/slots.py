"""Clients beside each other on one device: a step of each in turn, each in a slot of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

from fedmef_dist.cluster.gpu import SideStream

T = TypeVar("T")
# Work with pauses; what it comes to at its end.
Steps = Generator[None, None, T]


def all_steps(steps: Steps[T]) -> T:
    """Goes on behind every pause; returns what the work comes to."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def take_turns(streams: Sequence[SideStream], jobs: Iterable[Callable[[int], Steps[T]]]) -> Generator[T, None, None]:
    """Plays jobs, as many beside each other as there are streams, and gives what they come to, each as it ends.

    One thread makes a step of each in turn. A job's work on the device comes behind all that the current stream was
    given before the job began, and what the current stream is given once it has ended comes behind it. Closed early,
    this closes the jobs that have begun and lets the current stream wait for them.

    Args:
        streams: one for each slot.
        jobs: each is told the number of its slot, from 0, and has it for itself.
    """
    waiting, free = iter(jobs), deque(range(len(streams)))
    running: deque[tuple[int, Steps[T]]] = deque()
    try:
        while True:
            while free and (job := next(waiting, None)) is not None:
                streams[free[0]].fork()
                running.append((free[0], job(free.popleft())))
            if not running:
                return
            slot, steps = running[0]
            try:
                with streams[slot].within():
                    next(steps)
                running.rotate(-1)
            except StopIteration as end:
                running.popleft()
                streams[slot].join()
                yield end.value
                free.append(slot)
    finally:
        for slot, steps in running:
            with streams[slot].within():
                steps.close()
            streams[slot].join()
