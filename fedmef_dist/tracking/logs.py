"""What each rank did and when, in a file of its own: ``logs/rank-NNN.log`` in the run directory.

Modules write to their own standard loggers below ``fedmef_dist``. Nothing of the environment is written.
"""

import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

import torch

from fedmef_dist.base.notices import tell
from fedmef_dist.base.regular import own_file
from fedmef_dist.base.text import printable
from fedmef_dist.base.version import VERSION
from fedmef_dist.cluster.group import Group

_LOG = logging.getLogger("fedmef_dist")
# A program that uses the package decides itself what it shows of these events; without a log file nothing is shown.
_LOG.addHandler(logging.NullHandler())
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextmanager
def rank_log(run_dir: Path, group: Group) -> Iterator[None]:
    """Appends this rank's events to its file while the body runs; the last line says how the body ended.

    A log never ends a run: where the file cannot be opened or written, one line on stderr says so and the run goes on
    without it.
    """
    handler = _open(run_dir / "logs" / f"rank-{group.rank:03d}.log")
    before = _listen(handler)
    _LOG.info("start: %s", _describe(group))
    try:
        yield
        _LOG.info("end of the run")
    except Exception as error:
        _LOG.exception("ended by %s: %s", type(error).__name__, " ".join(str(error).split("\n")))
        raise
    except BaseException as leaving:
        _LOG.warning("stopped by %r", leaving)
        raise
    finally:
        _forget(handler, before)
        # What could not be written before is tried once more, and fails once more.
        with suppress(OSError):
            handler.close()


@contextmanager
def shown_events() -> Iterator[None]:
    """Shows what goes into the log on standard error too, while the body runs."""
    handler = _Shown()
    before = _listen(handler)
    try:
        yield
    finally:
        _forget(handler, before)


def _listen(handler: logging.Handler) -> int:
    """Hands the package's events to a handler; returns the level that they had."""
    before = _LOG.level
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    return before


def _forget(handler: logging.Handler, level: int) -> None:
    _LOG.removeHandler(handler)
    _LOG.setLevel(level)


class _Shown(logging.Handler):
    """One line an event, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show the event."""
        tell(record.getMessage())


class _Plain(logging.Formatter):
    """Lines that a terminal only shows."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or several with a traceback."""
        return printable(super().format(record), keep="\n\t")


class _RankFile(logging.FileHandler):
    """Gives up at the first event that cannot be written."""

    def _open(self) -> TextIOWrapper:
        handle = own_file(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        return TextIOWrapper(os.fdopen(handle, "ab"), encoding=self.encoding, errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Called by emit where writing failed; takes no further events."""
        self.setLevel(logging.CRITICAL + 1)
        _tell(Path(self.baseFilename), sys.exc_info()[1])

    def close(self) -> None:
        """Closes the file once the disk has it."""
        try:
            if self.stream is not None:
                os.fsync(self.stream.fileno())
        finally:
            super().close()


def _open(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _RankFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        _tell(path, error)
        return logging.NullHandler()
    handler.setFormatter(_Plain(_FORMAT))
    return handler


def _tell(path: Path, error: BaseException | None) -> None:
    tell(f"the run goes on without its log {path}: {error}")


def _describe(group: Group) -> str:
    place = group.environment
    return (
        # By its pid MPICH's mpirun names a rank that died.
        f"rank {place.rank} of {place.world_size} on {socket.gethostname()}, pid {os.getpid()}, {group.device}, "
        f"{torch.get_num_threads()} threads, started by {place.launcher}, fedmef_dist {VERSION}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
