import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from fedmef_dist.cluster.ending import SIGNALS
from fedmef_dist.cluster.group import RuntimeSettings, choose_threads

if torch.cuda.is_available():
    # As in a run: what tensor cores make of float32 is that of a CPU to three digits only.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
else:
    # Triton asks when it is imported, which libraries do for tests of anything: its kernels are interpreted.
    os.environ["TRITON_INTERPRET"] = "1"

# A thread a process, as ranks have it. The tests' processes share a few cores: threads that wait for each other there
# make a training of a thousand small steps take minutes in place of seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests' servers are on this machine, whatever proxy leads out of it.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))
torch.set_num_threads(choose_threads(RuntimeSettings(), os.environ))

# What a shell has started in the background ignores INT, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes single examples slow, which says nothing about the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """A test draws the same numbers whichever others its worker has run before."""
    torch.manual_seed(0)
    np.random.seed(0)


BIN = Path(sys.prefix) / "bin"
LAUNCHERS = {
    "torchrun": lambda ranks: [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks)],
    "mpirun": lambda ranks: [str(BIN / "mpirun"), "-n", str(ranks), sys.executable],
    "single": lambda ranks: [sys.executable],
}


@pytest.fixture(autouse=True)
def _handlers_as_before():
    """Commands that end their process leave the signals ignored; here the process goes on."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The working directory of somebody who has modules of their own; they are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = dict(sys.modules)
    yield tmp_path
    for name in {*sys.modules} - {*before}:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def launchers():
    """What comes before python's arguments: `launchers["torchrun"](ranks)`."""
    return LAUNCHERS


@pytest.fixture(scope="session")
def launch():
    """`launch("torchrun", ranks, *arguments, env={}, timeout=150)` gives the exit status and what the ranks printed.

    The launcher is torchrun, mpirun or single; the arguments are python's ("script.py", or "-m", "fedmef_dist", ...).
    """

    def start(launcher, ranks, *arguments, env=None, timeout=150, cwd=None):
        command = [*LAUNCHERS[launcher](ranks), *map(str, arguments)]
        # A session of its own, so that a time-out ends the ranks too and not only their launcher.
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return start
