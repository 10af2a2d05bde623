"""Why a tree of plain values does not fit its settings, in words of the one who wrote it."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import UNKNOWN_NAME


def explain(error: ValidationError, tree: Mapping[str, Any], where: str, hint: Callable[[str], str]) -> UserError:
    """What is wrong with the first key that does not fit.

    Args:
        error: what pydantic found.
        tree: the plain values that it looked at.
        where: names them in the message.
        hint: an unknown key -> what to do about it.
    """
    problems: dict[str, list[Any]] = {}
    for problem in error.errors(include_url=False):
        problems.setdefault(_dotted(problem["loc"], tree), []).append(problem)
    dotted, found = next(iter(problems.items()))
    more = f" (and {len(problems) - 1} more keys)" if len(problems) > 1 else ""
    if found[0]["type"] == "extra_forbidden":
        return UserError(f"unknown key {dotted}{more}", where=where, mend=hint(dotted))
    if found[0]["type"] == UNKNOWN_NAME:
        return UserError(f"{dotted}: {found[0]['msg']}{more}", where=where, mend=found[0]["ctx"]["mend"])
    # A value of several possible types fails once for each.
    message = " or ".join(problem["msg"].removeprefix("Value error, ") for problem in found)
    if found[0]["type"] != "value_error":
        message += f", got {reprlib.repr(found[0]['input'])}"
    return UserError(f"{dotted}: {message}{more}", where=where, mend=f"correct {dotted}")


def _dotted(location: Sequence[str | int], tree: Any) -> str:
    """A problem's key as the user wrote it; pydantic's location also holds names of methods and types."""
    keys = []
    for part in location:
        if (isinstance(tree, dict) and part in tree) or (isinstance(tree, list) and isinstance(part, int)):
            keys.append(str(part))
            tree = tree[part]  # type: ignore[index]
    return ".".join(keys)


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a settings model."""
    for key, field in model.model_fields.items():
        yield prefix + key
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from known_keys(kind, f"{prefix}{key}.")
