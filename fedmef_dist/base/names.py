"""Names and paths that leave the process: into scripts, other programs, files and terminals."""

from pathlib import Path

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable


def home_expanded(text: str) -> Path:
    """The path with ``~`` as the user's home. Raises UserError where that is not known."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(
            f"the home directory in {text} is not known",
            where="the environment",
            mend="write the path out, or set HOME",
        ) from None


def plain_path(path: Path, where: str) -> Path:
    """The path itself. Raises UserError, which names ``where`` it came from, if it holds control characters."""
    if printable(str(path)) != str(path):
        raise UserError(
            "a path must not hold line breaks or other control characters",
            where=f"{where}: {path}",
            mend="choose another path",
        )
    return path
