"""Runs that a test disturbs while they go on."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def started(command, **options):
    """The launcher's process, in a session of its own, of which nothing is left behind."""
    process = subprocess.Popen(
        [str(part) for part in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        # torchrun gives each rank a session of its own. Who has ended may have left its number to another.
        for pid in (*rank_processes(process.pid), process.pid) if process.poll() is None else ():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.communicate()


def rank_processes(launcher):
    """Pids of the ranks below a launcher, by rank; that of the launcher itself where it is the only process."""
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = status.read_text().partition(" (")
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
    found, waiting = [], [launcher]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return sorted(pid for pid in found if _is_rank(pid)) or [launcher]


def _is_rank(pid):
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"\0RANK=" in environ or b"\0PMI_RANK=" in environ


def ended(pid):
    """Whether a process has ended; its parent may not have noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "Z"
    except OSError:
        return True


def wait_for(path, process):
    """Until the run has written a file."""
    _wait(path.exists, process)


def wait_for_round(run_dir, number, process):
    """Until the run has saved so many rounds; of older checkpoints it keeps few."""

    def is_saved():
        return any(int(path.name[-6:]) >= number for path in (run_dir / "checkpoints").glob("round-*"))

    _wait(is_saved, process)


def _wait(condition, process):
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
