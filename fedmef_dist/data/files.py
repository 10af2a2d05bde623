"""Read and fetch the files of a data set; whatever is wrong with one becomes a message that names it."""

import fcntl
import gzip
import hashlib
import os
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedmef_dist.base.errors import UserError


def read_bytes(path: Path) -> bytes:
    """The content of ``path``, decompressed where its name ends in ``.gz``.

    Raises:
        UserError: the file is missing, unreadable, empty, or not a whole gzip file.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except FileNotFoundError as error:
        raise UserError(
            "a data file is missing", where=str(path), mend="put it there, or set data.download=true"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise damaged(path, "a whole gzip file", str(error)) from error
    except OSError as error:
        raise UserError(
            f"a data file cannot be read: {error.strerror}", where=str(path), mend="mend its permissions"
        ) from error
    if not content:
        raise damaged(path, "data", "an empty file")
    return content


def damaged(path: Path, expected: str, found: str, mend: str = "delete it and fetch it again") -> UserError:
    """The error for a file that is truncated or of another kind."""
    return UserError(f"a data file is damaged: expected {expected}, found {found}", where=str(path), mend=mend)


def fetch(url: str, path: Path, md5: str) -> None:
    """Download ``url`` to ``path`` and compare its MD5 sum; nothing stands at ``path`` before the file is whole.

    Ranks may fetch the same file at once: each writes under a name of its own and the last rename wins.

    Raises:
        UserError: no network, no such file, an unwritable folder, or another sum than ``md5``.
    """
    partial = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as target:
            found = _copy_and_digest(response, target)
        if found != md5:
            raise UserError(
                f"a downloaded file has MD5 {found} instead of {md5}",
                where=url,
                mend=f"try again, or put it at {path}",
            )
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot download a data file: {error}", where=url, mend=f"put it at {path} yourself"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[bool]:
    """One process of those that name this folder at a time; makes the folder. Gives whether it can be written.

    Where the file system has no locks nobody waits: what is done inside must bear company, if at a cost.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError:
        yield False
        return
    with lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


def _copy_and_digest(source: BinaryIO, target: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
