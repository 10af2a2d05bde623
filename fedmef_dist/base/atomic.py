"""Files that are either the old one or the new one, complete, whatever happens in between."""

import errno
import json
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` so that a crash or a loss of power leaves the old file or the new one.

    A link at ``path`` is replaced, not followed. Where it need not be ``durable``, a crash of the machine may leave an
    empty file, but other processes still see the old content or the new one. Raises OSError where the directory cannot
    be written; nothing temporary stays behind then.
    """
    if not path.name:  # "." and "/" have none
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    # The mode is what the umask makes of 0666: no file of mkstemp's 0600, which would hide results from the group.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def is_left_over(name: str) -> bool:
    """Whether :func:`write_bytes` has left a file of this name behind, because its process was killed."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp", name) is not None


def make_directory(path: Path) -> None:
    """Make the directory and those above it that are missing, so that their names outlast a loss of power.

    Nothing happens where it is there. Raises OSError where it cannot be made.
    """
    new = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    # Also the name of one that was there: who has made it may have been killed before this.
    for above in dict.fromkeys(place.parent for place in (path, *new)):
        with suppress(PermissionError):  # a folder that one may pass through, and not read, cannot be synced
            sync_directory(above)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON; raises ValueError for NaN and infinity, which JSON has not."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_directory(path: Path) -> None:
    """Make names created, renamed or removed in the directory ``path`` durable, where its file system can do that."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # as of automounts, images, and SMB before Linux 5.7: they sync no directory
            raise
    finally:
        os.close(handle)
