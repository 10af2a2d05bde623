"""How the process of a command ends: at once, and with the status that the command has come to.

The interpreter's own end is left out. It takes a second or two to pull PyTorch apart, in which a signal still kills a
process that is done, and it aborts where a thread is inside the store's C++ code, which may be stuck with its owner.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from fedmef_dist.base.notices import tell

# What asks a run to stop; HUP comes when the terminal or the connection that a run was started from is closed.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FAULT, INTERRUPTED = 1, 130
# Launchers kill 30 s after they ask to stop.
_PATIENCE_SECONDS = 20.0


def end_with(command: Callable[[], None]) -> NoReturn:
    """Call ``command`` and end the process with the status that it leaves with, 0 where it returns.

    For the command line only: a program that uses the package ends as its author wants.
    """
    try:
        command()
        status = 0
    except SystemExit as leaving:
        status = _status(leaving.code)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        traceback.print_exc()
        status = FAULT
    leave(status)


def _status(code: str | int | None) -> int:
    if isinstance(code, str):
        tell(code)
        return FAULT
    return code or 0


def leave(status: int) -> NoReturn:
    """End the process now; no signal changes the status any more.

    Before that, output is written, libraries do what they have registered for the end, and MPI is finalized; together
    they get 20 seconds. Where what the command printed cannot be written, 0 becomes 1.
    """
    try:
        ignore_signals()
        _limit(status)
        lost = _flush()
        # The only way to leave without the interpreter's end and still let others, such as W&B, close what they opened.
        atexit.unregister(_await)
        atexit._run_exitfuncs()
        finalized = _finalize_mpi()
        lost = _flush() or lost
        status = status or lost
        if finalized:
            _exit_through_c(status)
    except BaseException:
        traceback.print_exc()
        status = status or FAULT
    finally:
        os._exit(status)


def ignore_signals() -> None:
    """From here on no request to stop reaches this process: its work is done, and its status is certain."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def give_up_output() -> None:
    """Drop what standard output holds and will get: nobody reads it, and the run's files have it all."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def await_at_exit(thread: threading.Thread) -> None:
    """Have the interpreter's end wait for a thread that may be inside C++ code, where that end would abort.

    For programs that use the package; :func:`leave` need not wait.
    """
    atexit.register(_await, thread)


def _await(thread: threading.Thread) -> None:
    thread.join(_PATIENCE_SECONDS)


def _limit(status: int) -> None:
    """A thread that ends the process where something on the way hangs, for example MPI without a peer that is gone."""
    timer = threading.Timer(_PATIENCE_SECONDS, os._exit, (status,))
    timer.daemon = True
    timer.start()


def _flush() -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        tell(f"what was printed is not complete: {error.strerror}")
        return FAULT
    return 0


def _finalize_mpi() -> bool:
    """MPI's own end, without which mpirun takes the rank for a broken one; whether there was MPI to end."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized():
        return False
    if not mpi.Is_finalized():
        mpi.Finalize()
    return True


def _exit_through_c(status: int) -> None:
    """Ends the process by C's exit, and with what libraries of C do there.

    Only there does MPICH tell mpirun that a rank has ended as it should. One that leaves without is taken for broken,
    and who on its node has not left yet is killed with signal 9.
    """
    ctypes.CDLL(None).exit(status)
