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
from pathlib import Path

import torch

from fedmef_dist import __version__
from fedmef_dist.base.notices import tell
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
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
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
        _LOG.removeHandler(handler)
        # What could not be written before is tried once more, and fails once more.
        with suppress(OSError):
            handler.close()


class _RankFile(logging.FileHandler):
    """Gives up at the first event that cannot be written."""

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
    handler.setFormatter(logging.Formatter(_FORMAT))
    return handler


def _tell(path: Path, error: BaseException | None) -> None:
    tell(f"the run goes on without its log {path}: {error}")


def _describe(group: Group) -> str:
    place = group.environment
    return (
        f"rank {place.rank} of {place.world_size} on {socket.gethostname()}, {group.device}, "
        f"{torch.get_num_threads()} threads, started by {place.launcher}, fedmef_dist {__version__}, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )
