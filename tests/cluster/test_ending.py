"""How a command's process ends, and that a program that uses the package ends as it wants."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

# A store whose owner is stopped, and a client of it that waits inside torch's C++ code, in a thread of its own.
STUCK = """
import atexit, os, signal, sys, threading, time
import torch.distributed as dist
from fedmef_dist.cluster.ending import leave
from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.watch import Watch

def serve(ports):
    os.setpgid(0, 0)
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.write(ports, str(server.port).encode())
    time.sleep(60)

ports, other = os.pipe()
owner = os.fork()
if owner == 0:
    serve(other)
store = dist.TCPStore("127.0.0.1", int(os.read(ports, 10)), is_master=False, wait_for_workers=False)
watch = Watch(Environment("srun", 0, 2, 0, 2, "127.0.0.1", 1), store)
watch.start()
time.sleep(0.3)
os.kill(owner, signal.SIGSTOP)
time.sleep(0.6)
watch.close()
assert watch._thread.is_alive()
# The owner goes on while the interpreter is coming to its end, or after it.
later = f"time.sleep({sys.argv[1]}); os.kill({owner}, 18); time.sleep(1); os.kill({owner}, 9)"
os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", f"import os, time; {later}"], os.environ)
print(owner, flush=True)
"""


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.parametrize("status", [0, 75])
def test_a_thread_inside_a_store_that_is_stuck_does_not_change_the_status(status):
    command = [sys.executable, "-c", f"{STUCK}\nleave({status})", "100"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    owner = int(process.stdout.readline())
    try:
        assert process.wait(10) == status  # where it waited for the thread, it would do so for 20 s
    finally:
        for end, group in ((os.killpg, process.pid), (os.kill, owner)):
            with suppress(ProcessLookupError):
                end(group, signal.SIGKILL)
        process.communicate()


def test_a_program_of_its_own_waits_for_such_a_thread_at_its_end():
    done = run(f"{STUCK}\nsys.exit(4)", 1.0, stdout=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (4, "")


ENDS = """
import atexit, os, signal, sys
from fedmef_dist.cluster.ending import end_with

def at_the_end():
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    print("at the end")

def command():
    print("printed")
    {body}

class Late:
    def __del__(self):
        print("the interpreter's end", file=sys.stderr)

late = Late()
late.itself = late
atexit.register(at_the_end)
end_with(command)
"""


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit(75)", 75, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('what is wrong')", 1, "what is wrong\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise ValueError('broken')", 1, "ValueError: broken\n"),
    ],
)
def test_the_status_is_the_commands_whatever_signals_come(body, status, error):
    done = run(ENDS.format(body=body), stdout=subprocess.PIPE)
    assert done.returncode == status
    assert done.stdout == "printed\nat the end\n"
    assert done.stderr.endswith(error)
    assert bool(done.stderr) == bool(error)


def test_output_that_cannot_be_written_is_a_failure():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = run(ENDS.format(body="pass"), stdout=full)
    assert done.returncode == 1
    assert "what was printed is not complete: No space left on device\n" in done.stderr


def test_but_it_does_not_hide_another_status():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert run(ENDS.format(body="sys.exit(75)"), stdout=full).returncode == 75


def test_nothing_hangs_for_ever():
    body = "import fedmef_dist.cluster.ending as e, time; e._PATIENCE_SECONDS = 0.3; atexit.register(time.sleep, 150)"
    assert run(ENDS.format(body=f"{body}; sys.exit(3)"), stdout=subprocess.PIPE).returncode == 3
