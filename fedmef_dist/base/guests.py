"""Code from outside of the package, found by the name that a configuration gives it.

A name is ``package.module:Name`` (importable, or a file below the working directory) or that of an installed entry
point. A program may also lend objects to a run. Nothing is imported before :func:`find` is asked for it.
"""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.foreign_modules import import_module, member, place_of
from fedmef_dist.base.settings import Settings

OWN_FORM = "package.module:Name"
OBJECT = "object:"  # begins the name of what a program has lent and no module has
UNKNOWN_NAME = "unknown_name"
GuestName = Annotated[str, WithJsonSchema({"type": "string", "pattern": ":", "description": OWN_FORM})]
Options = Annotated[dict[str, JsonValue], WithJsonSchema({"type": "object"})]


class Kind(Enum):
    """What a guest can be; the value is the word for it."""

    METHOD = "method"
    MODEL = "model"
    DATASET = "data set"
    TRACKER = "tracker"
    CALLBACK = "callback"

    @property
    def group(self) -> str:
        """The group of its entry points, such as ``fedmef_dist.methods``."""
        return f"fedmef_dist.{self.value.replace(' ', '')}s"


_LENT: dict[tuple[Kind, str], Any] = {}


class GuestSettings(Settings):
    """A tracker or a callback: its name and, beside it, the options that it is called with. A name alone is one too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str = Field(min_length=1, description=OWN_FORM)

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @property
    def options(self) -> dict[str, Any]:
        """What the guest is called with."""
        return dict(self.__pydantic_extra__)


@contextmanager
def lent(objects: Mapping[tuple[Kind, str], Any]) -> Iterator[None]:
    """While the body runs, these names stand for these objects."""
    before = dict(_LENT)
    _LENT.update(objects)
    try:
        yield
    finally:
        _LENT.clear()
        _LENT.update(before)


def is_guest(kind: Kind, name: str) -> bool:
    """Whether a name can only be that of a guest; the caller has looked among the package's own. Imports nothing."""
    return ":" in name or (kind, name) in _LENT or name in entry_point_names(kind)


@cache
def entry_point_names(kind: Kind) -> tuple[str, ...]:
    """What installed packages offer, sorted."""
    return tuple(sorted(entry_points(group=kind.group).names))


def qualified_name(found: Any) -> str:
    """``package.module:Name`` of a class or function; for a script's own the script's name stands for its module."""
    module = str(found.__module__)
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec is not None else Path(file).stem if file else module
    return f"{module}:{found.__qualname__}"


def find(kind: Kind, name: str, key: str) -> Any:
    """The guest of this name; imports its module.

    Args:
        kind: what it is to be.
        name: as the configuration has it; see :func:`is_guest`.
        key: of the configuration, for messages.

    Raises:
        UserError: there is none, or its module raises an exception.
    """
    if (kind, name) in _LENT:
        return _LENT[kind, name]
    where = f"{key}={name}"
    if name.startswith(OBJECT) or "#" in name:
        raise UserError(f"{name} is an object that a program gave to the run", where=where, mend="start it from there")
    if ":" not in name:
        name = _entry_point(kind, name, where)
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise UserError(f"{name!r} is no name of a {kind.value}", where=where, mend=f"write {OWN_FORM}")
    found: Any = import_module(module_name, where)
    for part in path.split("."):
        found = member(found, part, where)
    return found


def _entry_point(kind: Kind, name: str, where: str) -> str:
    """What an entry point stands for, as ``package.module:Name``."""
    values = sorted({entry.value.partition("[")[0].strip() for entry in entry_points(group=kind.group, name=name)})
    if len(values) != 1:
        found = f"{len(values)} of them: {', '.join(values)}" if values else "none"
        raise UserError(
            f"not one entry point {name} in the group {kind.group}, but {found}", where=where, mend=f"write {OWN_FORM}"
        )
    return values[0]


def call(
    name: str, guest: Callable[..., Any], key: str, options: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> Any:
    """What a guest returns, or the object of its class.

    Args:
        name: of the guest, for messages.
        guest: a function or a class.
        key: where the configuration has the options, for messages.
        options: arguments by name, as the configuration has them.
        given: further ones, which every guest of its kind gets.

    Raises:
        UserError: it does not take these arguments, or raises an exception.
    """
    if not callable(guest):
        what = f"{name} is {type(guest).__name__} {guest!r:.60}, neither a class nor a function"
        raise UserError(what, where=key, mend="name what makes it")
    twice = [option for option in options if option in (given or {})]
    if twice:
        raise UserError(f"every run gives {twice[0]} itself", where=key, mend=f"leave {twice[0]} out")
    arguments = {**(given or {}), **options}
    _check_arguments(name, guest, key, arguments)
    try:
        return guest(**arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{name} failed: {type(error).__name__}: {error}"
        raise UserError(
            what, where=place_of(error, name), mend="correct it, or what the configuration gives it"
        ) from error


def unknown_name(
    kind: Kind, name: str, known: Iterable[str], hints: Mapping[str, str] | None = None
) -> PydanticCustomError:
    """The error, for a validator to raise, of a name that neither the package nor an entry point has.

    Args:
        kind: what was looked for.
        name: that is not known.
        known: the package's own names.
        hints: what to do instead, for names that are known to be asked for.
    """
    mend = (hints or {}).get(name) or nearest(name, [*known, *entry_point_names(kind)])
    context = {"kind": kind.value, "name": repr(name[:80]), "mend": mend}
    return PydanticCustomError(UNKNOWN_NAME, "unknown {kind} {name}", context)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The advice for a wrong name: the nearest known one, all of them, and the form of one's own."""
    names = list(known)
    near = [other for other in names if len(name) > 2 and name in other]
    near += difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    asked = f"did you mean {near[0]}? " if near else ""
    choice = f"choose one of {', '.join(names)}, or write" if names else "write"
    return f"{asked}{choice} {OWN_FORM} for your own"


def _check_arguments(name: str, guest: Callable[..., Any], key: str, arguments: Mapping[str, Any]) -> None:
    try:
        parameters = inspect.signature(guest).parameters.values()
    except (TypeError, ValueError):
        return  # what is written in C does not always tell
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    names = [parameter.name for parameter in named]
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [argument for argument in arguments if argument not in names and not takes_all]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]}?" if near else f"it takes {', '.join(names) or 'nothing'}"
        raise UserError(f"{name} does not take {unknown[0]}", where=key, mend=mend)
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise UserError(
            f"{name} needs {missing[0]}", where=key, mend=f"give it as an option, or {missing[0]} a default"
        )
