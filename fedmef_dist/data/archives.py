"""Data sets that come as one archive: where it is, what must be in it, how it is unpacked."""

import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.files import MOST_BYTES, damaged, exclusive, fetch, open_regular, own_suffix


@dataclass(frozen=True)
class Archive:
    """A data set's archive on its own site: ``url``, its MD5 sum, and the folder that it unpacks to."""

    url: str
    md5: str
    folder: str

    def ensure(self, root: Path, required: Sequence[str], download: bool) -> Path:
        """The folder below ``root`` with the ``required`` entries in it, fetched and unpacked where that is allowed.

        Raises:
            UserError: an entry is missing, or the archive cannot be downloaded or is damaged.
        """
        folder = root / self.folder
        if not _missing(folder, required):
            return folder
        if not download:
            raise UserError(
                "a data file is missing",
                where=f"{folder / _missing(folder, required)[0]}",
                mend=f"unpack {self._path(root).name} there (from {self.url}), or set data.download=true",
            )
        with exclusive(root):
            if _missing(folder, required):
                self._fetch_and_unpack(root, required)
        return folder

    def _path(self, root: Path) -> Path:
        return root / self.url.rpartition("/")[2]

    def _fetch_and_unpack(self, root: Path, required: Sequence[str]) -> None:
        path = self._path(root)
        if not path.is_file():
            fetch(self.url, path, self.md5)
        unpack(path, root / self.folder)
        missing = _missing(root / self.folder, required)
        if missing:
            raise damaged(path, f"an archive with {missing[0]}", "none")


def _missing(folder: Path, required: Sequence[str]) -> list[str]:
    return [name for name in required if not (folder / name).exists()]


def unpack(archive: Path, folder: Path, limit: int = MOST_BYTES) -> None:
    """Take the regular files out of a tar.gz or zip file into ``folder``, whose own name they may begin with.

    Links, members without a name and whatever would lie outside of the folder are left in the archive. The files get to
    the folder when all of them are out, and where it was not there all at once: other processes look into it without a
    lock, and would take half of the files for all.

    Raises:
        UserError: the archive is damaged, holds more than ``limit`` bytes, or the folder cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{own_suffix()}.part")
    try:
        partial.mkdir(parents=True)
        left = limit
        for name, content in _members(archive):
            path = partial.joinpath(*_inside(name, folder.name))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                left -= _copy(content, target, left, archive)
        _move(partial, folder)
    except BROKEN as error:
        raise damaged(archive, "a whole tar.gz or zip file", str(error)) from error
    except OSError as error:
        raise UserError(
            f"cannot unpack an archive: {error}", where=str(archive), mend=f"unpack it in {folder.parent} yourself"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError:  # there is something in it already
        shutil.copytree(partial, folder, copy_function=os.replace, dirs_exist_ok=True)


# RuntimeError: an encrypted member; NotImplementedError: a compression that zipfile has not; ValueError: a bad name.
BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError, zlib.error),
    *(EOFError, RuntimeError, NotImplementedError, ValueError),
)


def _copy(content: IO[bytes], target: IO[bytes], left: int, archive: Path) -> int:
    """Copies a member; returns its bytes. Raises UserError where there are more than are left of the limit."""
    size = 0
    while chunk := content.read(1 << 20):
        size += len(chunk)
        if size > left:
            raise damaged(archive, "an archive that unpacks to a sensible size", "more", "take another archive")
        target.write(chunk)
    return size


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of every regular file whose name stays below the place where it is unpacked."""
    with open_regular(archive) as file:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(file) as members:
                for entry in members.infolist():
                    if not entry.is_dir() and _is_safe(entry.filename):
                        with members.open(entry) as content:
                            yield entry.filename, content
            return
        with tarfile.open(fileobj=file) as tar:
            for member in tar:
                opened = tar.extractfile(member) if member.isreg() and _is_safe(member.name) else None
                if opened is not None:
                    yield member.name, opened
            if tar.fileobj is not None:
                tar.fileobj.read(1 << 20)  # what is left has the check sum


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _inside(name: str, folder: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    return parts[1:] if len(parts) > 1 and parts[0] == folder else parts
