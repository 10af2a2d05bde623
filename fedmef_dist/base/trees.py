"""Trees of plain values, as configurations are: read from YAML, and compared."""

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.regular import read_regular
from fedmef_dist.base.strict_yaml import parse_yaml

_LARGEST = 1 << 20


def read_tree_file(path: Path, what: str) -> dict[str, Any]:
    """The YAML mapping in a file that the user named; a link to one is followed.

    Raises UserError, which calls it ``what``, where it is no regular file of at most 1 MiB, or holds no mapping.
    """
    folder, name = os.path.split(os.path.realpath(path))
    try:
        return read_tree(read_regular(Path(folder), name, _LARGEST).decode(), str(path), what)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read the {what}: {reason}", where=str(path), mend=_another(path)) from None


def _another(path: Path) -> str:
    """What to give instead of a file that cannot be read."""
    beside = [other.name for other in path.parent.glob("*.yaml") if other != path]
    near = difflib.get_close_matches(path.name, beside, n=1)
    if near:
        return f"did you mean {path.with_name(near[0])}?"
    return "give a YAML file; `fedmef-dist init` writes a folder of them to start from"


def read_tree(text: str, where: str, what: str = "configuration") -> dict[str, Any]:
    """A YAML mapping; empty text is an empty one. Raises UserError, which calls it ``what``, where the text is none."""
    tree = parse_yaml(text, where)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(
            f"a {what} is a mapping of keys, and this is a {'list' if isinstance(tree, list) else 'single value'}",
            where=where,
            mend="write `key: value` lines; `fedmef-dist init` writes files to start from",
        )
    return tree


def differing_keys(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two trees."""
    keys = []
    for key in sorted({*one, *other}, key=str):
        left, right = one.get(key), other.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            keys += differing_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            keys.append(f"{prefix}{key}")
    return keys


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, in the order of the tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
