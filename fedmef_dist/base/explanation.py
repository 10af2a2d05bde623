"""Why a tree of plain values does not fit its settings, in words of the one who wrote it."""

import difflib
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.guests import UNKNOWN_NAME

# What a value of each kind of problem must be; names in braces are pydantic's own details of it.
_MUST_BE = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "list_type": "a list such as [a, b]",
    "dict_type": "a section such as {{key: value}}",
    "model_type": "a section such as {{key: value}}",
    "model_attributes_type": "a section such as {{key: value}}",
    "greater_than": "above {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "below {lt}",
    "less_than_equal": "{le} or less",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of {max_length} or fewer characters",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
}


def explain(error: ValidationError, tree: Mapping[str, Any], where: str, hint: Callable[[str], str]) -> UserError:
    """What is wrong with the first key that does not fit.

    Args:
        error: what pydantic found.
        tree: the plain values that it looked at.
        where: names them in the message.
        hint: an unknown key -> what to do about it.
    """
    problems: dict[str, list[Any]] = {}
    # A key that is missing is often one that is misspelt: that one comes first.
    for problem in sorted(error.errors(include_url=False), key=lambda problem: problem["type"] == "missing"):
        missing = problem["loc"][-1:] if problem["type"] == "missing" else ()
        key = ".".join(filter(None, [_dotted(problem["loc"], tree), *map(str, missing)]))
        problems.setdefault(key, []).append(problem)
    dotted, found = next(iter(problems.items()))
    more = f" (and {len(problems) - 1} more keys)" if len(problems) > 1 else ""
    if found[0]["type"] == "extra_forbidden":
        return UserError(f"unknown key {dotted}{more}", where=where, mend=hint(dotted))
    if found[0]["type"] == UNKNOWN_NAME:
        return UserError(f"{dotted}: {found[0]['msg']}{more}", where=where, mend=found[0]["ctx"]["mend"])
    return UserError(f"{dotted}: {_must_be(found)}{more}", where=where, mend=_nearest(found) or f"correct {dotted}")


def _must_be(found: Sequence[Any]) -> str:
    """What the value must be, and what it is. One of several possible types fails once for each."""
    if found[0]["type"] == "value_error":
        return str(found[0]["msg"].removeprefix("Value error, "))
    if found[0]["type"] == "missing":
        return "is missing"
    kinds = [_kind(problem) for problem in found]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        wanted = " or ".join(problem["msg"] for problem in found)
    else:
        wanted = f"must be {' or '.join(dict.fromkeys(known))}"
    return f"{wanted}, got {reprlib.repr(found[0]['input'])}"


def _kind(problem: Mapping[str, Any]) -> str | None:
    if problem["type"] == "literal_error":
        choices = _choices(problem)
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    template = _MUST_BE.get(problem["type"])
    details = {key: _plain(value) for key, value in problem.get("ctx", {}).items()}
    return None if template is None else template.format(**details)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _choices(problem: Mapping[str, Any]) -> list[str]:
    return re.findall("'([^']*)'", problem["ctx"]["expected"])


def _nearest(found: Sequence[Any]) -> str:
    """The advice for a word that is none of those to choose from, where one of them looks like it."""
    choices = [choice for problem in found if problem["type"] == "literal_error" for choice in _choices(problem)]
    word = found[0]["input"]
    if not isinstance(word, str):
        return ""
    near = [choice for choice in choices if min(len(choice), len(word)) > 2 and (choice in word or word in choice)]
    near = near or difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


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
