"""Trees of plain values, as configurations are: read from YAML, and compared."""

from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.strict_yaml import parse_yaml


def read_tree(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping; empty text is an empty one. Raises UserError where the text is none."""
    tree = parse_yaml(text, where)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError("a configuration is a mapping of sections", where=where, mend="see configs/quickstart.yaml")
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
