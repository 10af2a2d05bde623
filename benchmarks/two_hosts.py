"""Two hosts that share a run directory and no locks: the second start waits or takes over, and one truth is left.

    python benchmarks/two_hosts.py --starts 10

Needs root, ``sshfs`` and ``socat`` (Debian: ``sshfs openssh-sftp-server socat``). Each host is a set of namespaces of
this machine (its own name, id of its boot, process numbers and mounts) with its own mount of one directory over SFTP,
whose attributes are cached for up to 20 s and whose locks are not shared: what a careless network file system is like.
In turn: a second start while the first run lives; a start on the other host after a SIGKILL; one while the first is
stopped (SIGSTOP), which then comes back to life; and both at the same moment, ``--starts`` times. Ends with status 1
where one of them left another result than the undisturbed run.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")
ROUNDS = 30
# In the namespaces: name, boot id, the host's own mount at the place where both see the directory, then the command.
_BECOME = 'hostname "$1"; mount --bind "$2" /proc/sys/kernel/random/boot_id; mount --bind "$3" "$4"; shift 4; exec "$@"'


class Host:
    """One of the two hosts.

    Args:
        name: of the host.
        number: a digit, of which the id of its boot is made.
        folder: for its own files; ``folder/server`` is what is shared, ``folder/shared`` where both see it.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.shared = name, folder / "shared"
        self.boot, self.mount = folder / f"boot-{name}", folder / f"mount-{name}"
        self.boot.write_text(f"{str(number) * 8}-1111-2222-3333-444444444444\n")
        self.mount.mkdir()
        command = f"sshfs -o passive -f \\:{folder / 'server'} {self.mount},nofork"
        self.connection = subprocess.Popen(
            ["socat", f"EXEC:{SFTP_SERVER}", f"EXEC:{command}"], stderr=subprocess.DEVNULL
        )
        while not self.mount.is_mount():
            if self.connection.poll() is not None:
                raise SystemExit("the directory cannot be mounted: are sshfs, socat and an SFTP server installed?")
            time.sleep(0.1)

    def start(self, run: str, rounds: int = ROUNDS) -> "Started":
        """A run of one rank in the shared directory ``run``."""
        settings = [f"federation.rounds={rounds}", "checkpoint.every=2", "tracking.console=false"]
        command = ["run", str(CONFIG), "--run-dir", str(self.shared / run), *settings, "tracking.wandb.mode=disabled"]
        namespaces = ["unshare", "--uts", "--mount", "--pid", "--fork", "--mount-proc"]
        place = ["sh", "-c", _BECOME, "host", self.name, self.boot, self.mount, self.shared]
        log = self.boot.with_name(f"{run}-{self.name}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*namespaces, *map(str, place), sys.executable, "-m", "fedmef_dist", *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        return Started(process, log)

    def leave(self) -> None:
        """Gives the mount back."""
        subprocess.run(["umount", "-l", self.mount], check=False)
        self.connection.terminate()
        self.connection.wait()


class Started:
    """A run that was started on a host."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log, self.began = process, log, time.monotonic()

    def signal(self, number: int) -> None:
        """Sends the run itself a signal, which is the one child of ``unshare``."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(child), number)

    def end(self) -> int:
        """Waits for the exit status."""
        self.status = self.process.wait()
        self.seconds = time.monotonic() - self.began
        return self.status

    @property
    def word(self) -> str:
        """Exit status, seconds, and the line of its output that says why."""
        lines = [line for line in self.log.read_text().splitlines() if not line.startswith(("where:", "mend:"))]
        return f"status {self.status} after {self.seconds:.0f} s: {lines[-1] if lines else ''}"


def main() -> None:
    """Plays the four cases and prints a line for each start."""
    parser = argparse.ArgumentParser(description="Two hosts that share a run directory and no locks.")
    parser.add_argument("--starts", type=int, default=3, help="how often both start at the same moment")
    starts = parser.parse_args().starts
    folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
    for name in ("server", "shared"):
        (folder / name).mkdir()
    hosts: list[Host] = []
    try:
        hosts += [Host("n1", 1, folder), Host("n2", 2, folder)]
        right = play(*hosts, folder / "server", starts)
    finally:
        for host in hosts:
            host.leave()
        shutil.rmtree(folder)
    raise SystemExit(0 if right else 1)


def play(one: Host, other: Host, server: Path, starts: int) -> bool:
    """All cases; whether each ended as it should."""
    verdicts = []

    def judge(case: str, run: str, wanted: dict[Started, tuple[int, ...]], digest: str | None) -> None:
        statuses = [start.status in allowed for start, allowed in wanted.items()]
        verify = subprocess.run(
            [sys.executable, "-m", "fedmef_dist", "status", "--verify", server / run], capture_output=True, check=False
        )
        verdicts.append(all(statuses) and verify.returncode == 0 and digest in (None, digest_of(server / run)))
        words = "".join(f"\n       {start.word}" for start in wanted)
        print(f"{'right' if verdicts[-1] else 'WRONG'}  {case}{words}", flush=True)

    alone = one.start("undisturbed")
    alone.end()
    digest = digest_of(server / "undisturbed")
    judge("undisturbed", "undisturbed", {alone: (0,)}, digest)

    first = reach(one.start("second"), server / "second", 3)
    second = other.start("second")
    second.end(), first.end()
    judge("a second start while the first lives", "second", {first: (0,), second: (2,)}, digest)

    first = reach(one.start("killed"), server / "killed", 5)
    first.signal(signal.SIGKILL)
    first.end()
    second = other.start("killed")
    second.end()
    judge("a start on the other host after SIGKILL", "killed", {second: (0,)}, digest)

    first = reach(one.start("stopped"), server / "stopped", 5)
    first.signal(signal.SIGSTOP)
    second = reach(other.start("stopped"), server / "stopped", 9)
    first.signal(signal.SIGCONT)
    first.end(), second.end()
    judge("a stopped run is taken over and comes back", "stopped", {first: (1,), second: (0,)}, digest)

    for number in range(starts):
        both = [host.start(f"both-{number}", rounds=8) for host in (one, other)]
        winner = min(both, key=Started.end)
        loser = both[1 - both.index(winner)]
        judge(f"both at once, {number + 1}", f"both-{number}", {winner: (0,), loser: (2,)}, None)
    print(f"{sum(verdicts)} of {len(verdicts)} right")
    return all(verdicts)


def reach(started: Started, run_dir: Path, rounds: int) -> Started:
    """Waits until the run has written so many rounds."""
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < rounds:
        time.sleep(0.1)
    return started


def digest_of(run_dir: Path) -> str:
    """The digest in the run's summary."""
    return str(json.loads((run_dir / "summary.json").read_text())["model/digest"])


if __name__ == "__main__":
    main()
