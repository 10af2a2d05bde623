"""A real Slurm of several nodes on this machine, in temporary folders and on free ports."""

import contextlib
import getpass
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo", "scontrol")
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

CONF = """
# A requeued job waits for cred_expire seconds; 5 is the least that Slurm takes.
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
FirstJobId={first_job}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=15
# On a machine that other work holds up, daemons that answer late are not lost ones.
MessageTimeout=60
TCPTimeout=30
MailProg=/bin/true
RebootProgram=/bin/true
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs():
    """The programs of slurm-wlm and munge that this machine lacks."""
    return [program for program in PROGRAMS if find(program) is None]


def find(program):
    return shutil.which(program, path=SYSTEM_PATH)


class DaemonDiedError(RuntimeError):
    """A program of Slurm's or munge's own ended, which says nothing of what was tried with it."""


class SlurmCluster:
    """Starts munged, slurmctld and one slurmd a node; `close` ends these processes and no others."""

    def __init__(self, nodes=2, cpus=4):
        self.names = [f"n{number}" for number in range(1, nodes + 1)]
        # Not pytest's folder: the path of a socket has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.env = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}"}
        self._processes = []
        try:
            self._configure(cpus)
            self._start()
        except BaseException:
            self.close()
            raise

    def _configure(self, cpus):
        (self.folder / "state").mkdir()
        (self.folder / "munge.key").write_bytes(os.urandom(1024))
        (self.folder / "munge.key").chmod(0o600)
        controller_port, *ports = free_ports(1 + len(self.names))
        host = socket.gethostname().partition(".")[0]
        # The node names do not resolve: what is tried with them also tries the way by the node's address.
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"
            for name, port in zip(self.names, ports, strict=True)
        )
        # The ranks' port follows from the job's number: two test runs on one machine must not start with the same.
        first_job = random.randrange(1, 100_000)
        values = {
            "host": host,
            "controller_port": controller_port,
            "first_job": first_job,
            "user": getpass.getuser(),
            "folder": self.folder,
        }
        (self.folder / "slurm.conf").write_text(CONF.format(nodes=nodes, **values))

    def _start(self):
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge.{ending}" for option, ending in files.items()]
        self._spawn("munged", "--foreground", "--force", *options)
        self._wait_for("munged", (self.folder / "munge.socket").exists)
        self._spawn("slurmctld", "-D", "-c")
        for name in self.names:
            (self.folder / f"spool-{name}").mkdir()
            self._spawn("slurmd", "-D", "-N", name)
        self._wait_for("nodes", lambda: self.states() == ["idle"] * len(self.names))

    def _spawn(self, program, *arguments):
        with (self.folder / f"{program}.out").open("ab") as output:
            process = subprocess.Popen(
                [find(program), *arguments],
                env={**os.environ, **self.env},
                cwd=self.folder,  # where the core of one that crashes goes away with the rest
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)

    def _wait_for(self, what, condition, seconds=90):
        deadline = time.monotonic() + seconds
        while self.dead() or not condition():
            if time.monotonic() > deadline or self.dead():
                logs = "".join(
                    f"== {log.name}\n{log.read_text()[-2000:]}" for log in self.folder.glob("*.[lo][ou][gt]")
                )
                kind = DaemonDiedError if self.dead() else RuntimeError
                raise kind(f"Slurm does not start: {what} {self.dead()}\n{logs}")
            time.sleep(0.1)

    def states(self):
        """The state of each node, "idle" where it is ready."""
        try:
            shown = self.run(["sinfo", "--Node", "--noheader", "--format=%T"], timeout=20)
        except (DaemonDiedError, subprocess.TimeoutExpired):
            return []
        return shown.stdout.split() if shown.returncode == 0 else []

    def run(self, command, env=None, timeout=120, cwd=None):
        """A command with this cluster's configuration; text streams. Raises DaemonDiedError."""
        environ = {**os.environ, **self.env, "OMP_NUM_THREADS": "1", **(env or {})}
        try:
            return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=timeout, cwd=cwd)
        finally:
            self.check()

    def check(self):
        """Raises DaemonDiedError where one of the daemons ended."""
        if dead := self.dead():
            raise DaemonDiedError(dead)

    def dead(self):
        """Which of the daemons ended, as a text; empty while all run."""
        return ", ".join(
            f"{Path(process.args[0]).name} ended with {process.returncode}"
            for process in self._processes
            if process.poll() is not None
        )

    def srun(self, command, ntasks=2, nodes=2, env=None, timeout=120, cwd=None):
        """`command` as `ntasks` tasks on `nodes` nodes, outside of any job: what it printed and srun's exit status."""
        place = [f"--nodes={nodes}", f"--ntasks={ntasks}", "--kill-on-bad-exit=1", "--immediate=60"]
        return self.run(["srun", *place, *map(str, command)], env, timeout, cwd)

    def sbatch(self, script, *arguments, env=None, timeout=120, cwd=None):
        """A batch script, waited for: sbatch's streams and the job's exit status."""
        return self.run(["sbatch", "--wait", str(script), *map(str, arguments)], env, timeout, cwd)

    def submit(self, script, *arguments, env=None, cwd=None):
        """The number of a batch job that is not waited for; its options stand before the script."""
        done = self.run(["sbatch", "--parsable", *map(str, script), *map(str, arguments)], env, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self, number):
        """What the controller knows of a job, or of each job of an array: a dictionary a job."""
        shown = self.run(["scontrol", "show", "job", number]).stdout
        return [dict(re.findall(r"(\S+?)=(\S+)", record)) for record in shown.split("\n\n") if record.strip()]

    def wait(self, number, *states, timeout=200):
        """Wait until each job of this number is in one of the states; returns them."""
        deadline = time.monotonic() + timeout
        while True:
            jobs = self.jobs(number)
            if all(job["JobState"] in states for job in jobs):
                return jobs
            reasons = [(job["JobState"], job["Reason"], job["ExitCode"], job["StdOut"]) for job in jobs]
            assert time.monotonic() < deadline, reasons
            assert not all(job["JobState"] in ENDED for job in jobs), reasons
            time.sleep(0.2)

    def close(self):
        """Cancel what runs, end the daemons in the opposite order of their start, remove their files."""
        if len(self._processes) > 1:
            with contextlib.suppress(subprocess.TimeoutExpired, DaemonDiedError):
                self.run(["scancel", "--user", getpass.getuser()], timeout=20)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def free_ports(count):
    """Ports that nobody listens on; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
