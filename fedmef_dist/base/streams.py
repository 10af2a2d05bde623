"""Standard input, output and error of a process that may have been started without them."""

import io
import os
import sys


def open_standard_streams() -> None:
    """Open each of the descriptors 0, 1 and 2 that is closed on the null device, and let output hold any character.

    Otherwise the next file or socket would get its number, and whatever prints would write into that; and a character
    that the locale's encoding lacks would end the command: it is written out, as on standard error. For the start of a
    program, before anything else is opened.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _open_null(number)
    # Python has no object for a stream that was closed when it started.
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _open_null(number: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(opened, number)
        os.close(opened)
