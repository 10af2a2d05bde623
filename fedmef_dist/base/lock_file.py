"""A lock of the kernel on a file: whoever dies lets go of it, however he dies."""

import errno
import fcntl
import os
import stat
import weakref
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class LockFile:
    """An exclusive ``flock`` on the file ``path``, which is made where it is missing and stays behind, empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None
        _OPEN.add(self)

    def take(self) -> bool:
        """Whether no other process holds the lock; it is then held here, where the file system has such locks at all.

        Raises OSError where the file cannot be opened, or is a link or anything else but a regular file.
        """
        while self._handle is None:
            handle = self._open()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(handle)
                if error.errno in _NO_LOCKS:
                    return True
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return False
                raise
            if self._is_at_its_place(handle):
                self._handle = handle
            else:  # somebody has removed the file in between: the lock is on one that nobody else finds
                os.close(handle)
        return True

    @property
    def held(self) -> bool:
        """Whether this object holds a lock of the kernel."""
        return self._handle is not None

    def release(self) -> None:
        """Let go; nothing happens where the lock is not held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(self._path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, f"{self._path.name} is not a regular file")
        return handle

    def _is_at_its_place(self, handle: int) -> bool:
        try:
            return os.path.samestat(self._path.lstat(), os.fstat(handle))
        except FileNotFoundError:
            return False


_OPEN: "weakref.WeakSet[LockFile]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A forked process shares the lock, and would hold it after the death of the one that took it."""
    for lock in _OPEN:
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
