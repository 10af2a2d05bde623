"""Functions that numba compiles once for all processes of a machine: in the cache beside the bytecode, or the user's.

Importing this module takes numba's own start-up time; import it where a compiled function is first needed.
"""

import fcntl
import sys
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_name
from numba import njit


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """The function as machine code, compiled at its first call or loaded from the cache; it lets other threads run.

    Args:
        function: in what numba understands.
        options: more of numba's.
    """
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # neither __pycache__ nor the user's cache can be written: compiled in every process
        return njit(nogil=True, **options)(function)


def fill_cache(function: Any, kind: str, call: Callable[[], None]) -> None:
    """Compiles by ``call``, or loads what an earlier process has compiled.

    Processes that start together on an empty cache would all compile, and different processors that share it could
    overwrite each other's code; so one after another has it to itself until a marker says that it is full.

    Args:
        function: a compiled one of the module that ``call`` compiles.
        kind: tells this call from others for the same module, for example by the type of its arguments.
        call: calls everything that is to be compiled.
    """
    folder, source = function.stats.cache_path, Path(function.py_func.__code__.co_filename)
    marker = Path(folder) / f"{source.stem}-{_key(source, kind)}.ready" if folder else None
    if marker is None or marker.exists():
        return call()
    with (marker.parent / f"{source.stem}.lock").open("w") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        call()
        marker.touch()


def _key(source: Path, kind: str) -> str:
    """Stands for all that the machine code depends on."""
    parts = [get_host_cpu_name(), numba.__version__, sys.version, kind, source.read_text()]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
