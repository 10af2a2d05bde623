"""Exceptions with a meaning of their own: the user's input is wrong, or a run's files are gone."""

from fedmef_dist.base.text import printable


class UserError(Exception):
    """Something that the user gave is wrong; the command ends with exit status 2, without a traceback.

    Args:
        what: what is wrong, one line.
        where: the key, file or place that it was found in; empty where ``what`` says it.
        mend: what the user can do about it; empty where ``what`` says it.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        """One to three lines, as they are shown; control characters, which the input may hold, are written out."""
        named = (("where", self.where), ("mend", self.mend))
        lines = [self.what, *(f"{name}: {text}" for name, text in named if text)]
        return "\n".join(map(printable, lines))


class FilesLostError(Exception):
    """Somebody removed or replaced files that this process was writing; the command ends with exit status 1.

    It is no OSError: a full disk passes, this does not.
    """
