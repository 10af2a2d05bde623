"""Modules from outside of the package, and what is told where they fail."""

import difflib
import importlib
import sys
import sysconfig
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmef_dist.base.errors import UserError

_PACKAGE = Path(__file__).parent.parent
_INSTALLED = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]


def import_module(name: str, where: str) -> ModuleType:
    """The module, sought on Python's path, then below the working directory, which joins that path.

    Raises:
        UserError: it is not there, or raises an exception; ``where`` is then a part of the message.
    """
    folder = Path.cwd()
    if not {"", str(folder)} & {*sys.path}:
        sys.path.append(str(folder))  # last, so that a file in it hides no installed module
    importlib.invalidate_caches()
    try:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
            return _from_file(name, folder, where)
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        what = f"{name} cannot be imported: {type(error).__name__}: {error}"
        raise UserError(what, where=f"{place_of(error, name)} ({where})", mend="correct the module") from error


def _from_file(name: str, folder: Path, where: str) -> ModuleType:
    """A module whose package has the name of another one on Python's path. Raises UserError where there is no file."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    spec = spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        files = [file.stem for file in path.parent.glob("*.py")]
        near = difflib.get_close_matches(path.stem, files, n=1)
        mend = f"did you mean {'.'.join([*name.split('.')[:-1], near[0]])}?" if near else f"put it at {path}"
        raise UserError(
            f"there is no module {name}", where=f"{where}; looked in {folder} and on Python's path", mend=mend
        )
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def member(owner: Any, name: str, where: str) -> Any:
    """What a module or class has under this name. Raises UserError where it has nothing."""
    if hasattr(owner, name):
        return getattr(owner, name)
    public = [member for member in vars(owner) if not member.startswith("_")]
    near = difflib.get_close_matches(name, public, n=1, cutoff=0.5)
    place = f"{where}; looked in {getattr(owner, '__file__', owner)}"
    mend = f"did you mean {near[0]}?" if near else f"define {name} there"
    raise UserError(f"{owner.__name__} has no {name}", where=place, mend=mend)


def place_of(error: BaseException, name: str) -> str:
    """File and line of the guest's own code where an exception arose, or its name where that cannot be told.

    That is the innermost frame outside of this package, and of what is installed if there is one.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    guests = [frame for frame in frames if not Path(frame.filename).is_relative_to(_PACKAGE)]
    own = [frame for frame in guests if not any(Path(frame.filename).is_relative_to(path) for path in _INSTALLED)]
    innermost = (own or guests)[-1:]
    return f"{innermost[0].filename}, line {innermost[0].lineno}" if innermost else name
