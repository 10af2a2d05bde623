"""Which of several starts follows an owner that has ended: the one that makes the file ``.owner-after-TOKEN-0`` first.

Whether a file is new is decided where the directory lies, whatever hosts have cached of it and whether or not they
share locks; so two starts of one moment cannot both think that the directory is theirs. ``TOKEN`` is that of the owner
that is followed, which nobody is ever again.
"""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from fedmef_dist.runs import owner_record
from fedmef_dist.runs.owner_record import Seen

_PREFIX = ".owner-after-"
_KEPT_SECONDS = 3600.0  # far longer than a host may have an old record in its cache


class Succession:
    """The right of one start to follow the owner whose record it has seen.

    Args:
        run_dir: the directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._followed, self._attempt, self._since = "", 0, 0.0

    def take(self, seen: Seen, now: float) -> bool:
        """Whether this start follows the owner of the record; else another one does, whose record is due.

        A start that was killed before it wrote its own is waited for as long as an owner that is not heard; the next
        one to follow then makes the next file.

        Args:
            seen: a record whose owner has ended.
            now: this process's own clock, in seconds.

        Raises:
            OSError: the directory cannot be written.
        """
        followed = _token(seen)
        if followed != self._followed:
            self._followed, self._attempt, self._since = followed, 0, now
        while True:
            if _make(self._file(self._attempt)):
                return True
            if now - self._since < owner_record.SILENCE_SECONDS:
                return False
            self._attempt, self._since = self._attempt + 1, now

    def is_overtaken(self) -> bool:
        """Whether this start took so long that another one has given it up and follows the same owner."""
        return self._file(self._attempt + 1).exists()

    def give_back(self) -> None:
        """The owner's record is back at its place: whoever comes next may follow it."""
        self._file(self._attempt).unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes files by which nobody can be misled any more."""
        own = self._file(self._attempt).stat().st_mtime  # by the clock of whoever keeps the directory, as of the others
        for path in self._run_dir.glob(f"{_PREFIX}*"):
            with suppress(FileNotFoundError):
                if own - path.stat().st_mtime > _KEPT_SECONDS:
                    path.unlink()

    def _file(self, attempt: int) -> Path:
        return self._run_dir / f"{_PREFIX}{self._followed}-{attempt}"


def is_of_a_succession(name: str) -> bool:
    """Whether a file of this name tells who follows whom."""
    return name.startswith(_PREFIX)


def _token(seen: Seen) -> str:
    if seen.record is not None:
        return seen.record.token
    return "nobody" if seen.content is None else f"damaged-{sha256(seen.content).hexdigest()[:16]}"


def _make(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666))
    except FileExistsError:
        return False
    return True
