"""Ranks as processes on this machine, without a launcher: for sweeps and scaling studies."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from fedmef_dist.cluster.ending import SIGNALS
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.cluster.rendezvous import STORE_KEY

# A rank that fails ends its peers within this time by itself.
_PATIENCE_SECONDS = 30.0


def run_ranks(arguments: Sequence[str], ranks: int, output: IO[bytes] | None = None) -> int:
    """Run ``python -m fedmef_dist ARGUMENTS`` as so many ranks that meet on the loopback interface.

    Signals that ask a run to stop are handed on to the ranks. What they print goes to ``output``, or where this process
    prints. Returns the exit status of the first rank that ended otherwise than with 0, else 0; 75 also where such a
    signal ended a rank that could not listen to it yet.
    """
    command = [sys.executable, "-m", "fedmef_dist", *arguments]
    return wait_for([(command, environment) for environment in _environments(ranks)], output)


def wait_for(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]],
    output: IO[bytes] | None = None,
    handed_on_as: Mapping[signal.Signals, signal.Signals] | None = None,
) -> int:
    """Start each command with its environment and wait for all; otherwise as :func:`run_ranks`.

    ``handed_on_as`` tells which signals reach the commands as others.
    """
    processes: list[subprocess.Popen[bytes]] = []
    handed_on: set[int] = set()

    def hand_on() -> None:
        while heard:
            number = heard.popleft()
            sent = (handed_on_as or {}).get(signal.Signals(number), number)
            handed_on.add(sent)
            for process in processes:
                process.send_signal(sent)

    with _hearing() as heard, _ending(processes):
        for command, environment in commands:
            # A session of its own: Ctrl-C reaches the ranks once, through this process.
            processes.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
            )
        status = _first_failure(processes, hand_on)
    return STOPPED_EARLY if status - 128 in handed_on - {signal.SIGINT} else status


def _environments(ranks: int) -> list[dict[str, str]]:
    """Each rank's environment, in torchrun's words; that of a single process is left as it is."""
    base = {"OMP_NUM_THREADS": "1", **os.environ}
    if ranks == 1:
        return [base]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, STORE_KEY: secrets.token_hex(16)}
    size = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [base | meeting | size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


@contextmanager
def _hearing() -> Iterator[deque[int]]:
    """Signals that come while the body runs, for it to take and hand on.

    A handler that handed them on itself could run while a process is being started, which would then miss the signal.
    """
    heard: deque[int] = deque()
    # What is ignored here, as HUP under nohup, is ignored by the ranks too.
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ending(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Leaves none of the processes behind."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()  # without effect on those that have ended
            process.wait()


def _first_failure(processes: Sequence["subprocess.Popen[bytes]"], hand_on: Callable[[], None]) -> int:
    status, deadline = 0, float("inf")
    while time.monotonic() < deadline:
        hand_on()
        ended = [process.poll() for process in processes]
        failed = [code for code in ended if code]
        if failed and not status:
            status, deadline = failed[0], time.monotonic() + _PATIENCE_SECONDS
        if None not in ended:
            break
        time.sleep(0.05)
    hand_on()  # a signal to the whole job may have ended the processes first
    return status if status >= 0 else 128 - status
