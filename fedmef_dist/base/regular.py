"""Files that others may have laid out: regular ones alone are read, up to a limit of size, through no link."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW


def read_regular(directory: Path, name: str, limit: int, *, tail: bool = False) -> bytes:
    """The content of the file ``name``, a path with slashes below ``directory``.

    The directory itself may be a link, nothing below it. With ``tail`` a larger file gives its last ``limit`` bytes.

    Raises:
        OSError: the file cannot be opened, is a link, a FIFO, a device or a directory, or is larger than ``limit``
            bytes; ``strerror`` says so.
    """
    with open_regular(directory, name) as handle:
        size = os.fstat(handle).st_size
        if size > limit and not tail:
            raise OSError(errno.EFBIG, f"larger than {limit} bytes")
        os.lseek(handle, max(0, size - limit), os.SEEK_SET)
        pieces, left = [], min(size, limit)
        while left and (piece := os.read(handle, min(left, 1 << 24))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)


@contextmanager
def open_regular(directory: Path, name: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The open file ``name`` below ``directory`` as a descriptor; see :func:`read_regular`. It waits for nobody."""
    # Opened anew each time: a network file system then looks whether its names are still the same.
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, last = name.split("/")
        for folder in folders:
            below = _open(folder, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, place)
            os.close(place)
            place = below
        handle = _open(last, flags | os.O_NONBLOCK | _FLAGS, place)
    finally:
        os.close(place)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        yield handle
    finally:
        os.close(handle)


def own_file(path: str, flags: int) -> int:
    """An ``opener`` for :func:`open`: makes or opens a regular file, through no link, and waits for nobody.

    Raises OSError where something else lies there.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | _FLAGS, 0o666)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise OSError(errno.EINVAL, "not a regular file", path)


def is_regular(path: Path) -> bool:
    """Whether a regular file lies there, and not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _open(name: str, flags: int, place: int) -> int:
    try:
        return os.open(name, flags, dir_fd=place)
    except OSError as error:
        # Linux says ENOTDIR of a link where a directory was asked for, and ENXIO of a socket.
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(name, place)):
            raise OSError(errno.ELOOP, "a link, which is not followed") from None
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "not a regular file") from None
        raise


def _is_link(name: str, place: int) -> bool:
    return stat.S_ISLNK(os.lstat(name, dir_fd=place).st_mode)
