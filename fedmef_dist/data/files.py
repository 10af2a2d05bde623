"""Read and fetch the files of a data set; whatever is wrong with one becomes a message that names it."""

import fcntl
import gzip
import hashlib
import io
import os
import secrets
import stat
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

from fedmef_dist.base.errors import UserError

MOST_BYTES = 16 << 30  # of one file, compressed or not: more than any known data set has in one
_PIECE_BYTES = 2**20


def open_regular(path: Path, limit: int = MOST_BYTES) -> BinaryIO:
    """The file opened for reading, where it is a regular one of at most ``limit`` bytes; links to such are followed.

    Pipes, sockets and devices are refused before a byte is read, since reading them may never end.

    Raises:
        UserError: the file is missing, unreadable, of another kind, or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(path, error) from error
    status = os.fstat(handle)
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return os.fdopen(handle, "rb")
    os.close(handle)
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "a regular file", "a folder, pipe or device", "take it away")
    raise damaged(path, f"at most {limit:,} bytes", f"{status.st_size:,}", "give a smaller file")


def read_bytes(path: Path, limit: int = MOST_BYTES) -> bytes:
    """The content of ``path``, decompressed where its name ends in ``.gz``; at most ``limit`` bytes.

    Raises:
        UserError: the file is missing, unreadable, empty, too large, not a regular file, or not a whole gzip file.
    """
    try:
        with open_regular(path, limit) as file:
            content = file.read()
        if path.suffix == ".gz":
            content = _decompressed(content, limit)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, "a whole gzip file", str(error)) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not content:
        raise damaged(path, "data", "an empty file")
    if len(content) > limit:
        raise damaged(path, f"at most {limit:,} bytes", "more", "give a smaller file")
    return content


def _decompressed(content: bytes, limit: int) -> bytes:
    """Piece by piece, a little more than ``limit`` bytes at most: one large read would set the limit's memory aside."""
    pieces, size = [], 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while size <= limit and (piece := file.read(_PIECE_BYTES)):
            pieces.append(piece)
            size += len(piece)
    return b"".join(pieces)


def damaged(path: Path, expected: str, found: str, mend: str = "delete it and fetch it again") -> UserError:
    """The error for a file that is truncated or of another kind."""
    return UserError(f"a data file is damaged: expected {expected}, found {found}", where=str(path), mend=mend)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file or folder that the system does not give out."""
    if path.is_symlink() and not os.access(path, os.F_OK):
        return UserError(
            "a link leads nowhere",
            where=f"{path} -> {path.readlink()}",
            mend="fetch what it stands for (as git-annex and DVC do), or take it away",
        )
    if isinstance(error, FileNotFoundError):
        return UserError("a data file is missing", where=str(path), mend="put it there, or correct data.root")
    return UserError(f"a data file cannot be read: {error.strerror}", where=str(path), mend="mend its permissions")


def fetch(url: str, path: Path, md5: str) -> None:
    """Download ``url`` to ``path`` and compare its MD5 sum; nothing stands at ``path`` before the file is whole.

    Ranks may fetch the same file at once: each writes under a name of its own and the last rename wins.

    Raises:
        UserError: no network, no such file, an answer that breaks off, an unwritable folder, or another sum than
            ``md5``.
    """
    partial = path.with_name(f"{path.name}.{own_suffix()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("xb") as target:
            found = _copy_and_digest(response, target)
        if found != md5:
            raise UserError(
                f"a downloaded file has MD5 {found} instead of {md5}",
                where=url,
                mend=f"try again, or put it at {path}",
            )
        partial.replace(path)
    except (OSError, HTTPException) as error:
        raise UserError(
            f"cannot download a data file: {error}", where=url, mend=f"put it at {path} yourself"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def own_suffix() -> str:
    """For a temporary name: process numbers and even host names repeat where containers share a folder."""
    return f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """One process of those that name this folder at a time; makes the folder. Gives whether it can be written.

    The lock is a file of its own, never a link, so that nothing elsewhere is touched. Where the file system has no
    locks nobody waits: what is done inside must bear company, if at a cost.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(folder / ".lock", flags, 0o666)
    except OSError:
        yield False
        return
    try:
        if stat.S_ISREG(os.fstat(lock).st_mode):
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield stat.S_ISREG(os.fstat(lock).st_mode) and os.access(folder, os.W_OK)
    finally:
        os.close(lock)


def _copy_and_digest(source: BinaryIO, target: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
