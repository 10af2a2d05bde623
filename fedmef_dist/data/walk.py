"""Folders as people leave them: what is passed over, what is followed, what is named and refused."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedmef_dist.base.errors import UserError
from fedmef_dist.data.files import damaged, unreadable

# Left by file managers, network storage, archives and file systems; names are compared in lower case.
_LEFTOVER_FOLDERS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "#recycle", "#snapshot"} | {
    "system volume information"
}
_LEFTOVER_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_DEEPEST = 64  # folders within folders


@dataclass
class Walk:
    """Looks through folders and counts what it passes over.

    Hidden folders and files are passed over, and so is what systems leave behind: ``@eaDir``, ``__MACOSX``,
    ``lost+found``, thumbnails. Linked folders are followed.

    Attributes:
        skipped: how often something was passed over, by reason.
    """

    skipped: Counter[str] = field(default_factory=Counter)

    def folders(self, folder: Path) -> list[str]:
        """Names of the folders in a folder, sorted; files in it are passed over. Raises UserError as :meth:`files`."""
        names = []
        for entry in self._entries(folder):
            if self._is_folder(entry):
                names.append(entry.name)
            elif entry.is_symlink() and not entry.is_file():
                raise unreadable(Path(entry), FileNotFoundError())
            else:
                self.skipped["files outside of the classes' folders"] += 1
        return names

    def files(self, folder: Path) -> list[Path]:
        """All files below a folder, in the order of their paths.

        Raises:
            UserError: a link leads nowhere or back to a folder above it, a folder cannot be read, or a file is neither
                a file nor a folder, as a pipe is.
        """
        return sorted(self._below(folder, ()))

    def named(self, folder: Path, suffix: str) -> list[Path]:
        """The files in a folder whose names end in ``suffix``, sorted; none where there is no folder."""
        if not folder.is_dir():
            return []
        entries = [Path(entry) for entry in self._entries(folder) if entry.name.endswith(suffix)]
        for path in entries:
            if not path.exists():
                raise unreadable(path, FileNotFoundError())
        return entries

    def _below(self, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
        status = folder.stat()
        own = status.st_dev, status.st_ino
        if own in above or len(above) > _DEEPEST:
            raise damaged(folder, "folders with an end", "a link that leads back above itself", "take the link away")
        for entry in self._entries(folder):
            if self._is_folder(entry):
                yield from self._below(Path(entry), (*above, own))
            elif entry.is_file():
                yield Path(entry)
            elif not entry.is_symlink():
                raise damaged(Path(entry), "a file or folder", "a pipe, socket or device", "take it away")
            else:
                raise unreadable(Path(entry), FileNotFoundError())

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """What is in a folder and not left behind by a system, sorted by name."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise unreadable(folder, error) from error
        return [entry for entry in entries if not self._leaves(entry)]

    def _leaves(self, entry: os.DirEntry[str]) -> bool:
        name = entry.name.lower()
        is_folder = self._is_folder(entry)
        if name.startswith("."):
            self.skipped["hidden folders" if is_folder else "hidden files"] += 1
        elif name in (_LEFTOVER_FOLDERS if is_folder else _LEFTOVER_FILES):
            self.skipped[f"{'folders' if is_folder else 'files'} named {entry.name.strip()}"] += 1
        else:
            return False
        return True

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:
            raise UserError(
                f"a folder cannot be read: {error.strerror}", where=entry.path, mend="mend its permissions"
            ) from error
