"""The part of YAML that a configuration needs, without what surprises."""

import re
from typing import Any

import yaml

from fedmef_dist.base.errors import UserError

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def parse_yaml(text: str, where: str) -> Any:
    """Plain values: mappings, lists, strings, numbers, booleans, null; ``where`` names the text in messages.

    Raises:
        UserError: the text is not YAML, a key stands twice, or there are anchors, aliases or tags.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).replace('"<unicode string>", ', "")[:300]
        raise UserError(f"not valid YAML: {reason}", where=where, mend="correct or quote it") from None


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice and every value is what it looks like.

    Numbers are those of YAML 1.2: 1e-3 is one and 1:30 is text. One that begins with a needless 0 is refused: YAML 1.1
    reads 010 as 8, YAML 1.2 as 10.

    Aliases and tags are refused: each key of a configuration occurs once, and nested aliases can stand for a tree
    larger than any memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node. Raises YAMLError where it is an alias, or has an anchor or a tag."""
        event = self.peek_event()
        if any(getattr(event, name, None) for name in ("anchor", "tag")):
            raise yaml.MarkedYAMLError(
                problem="anchors, aliases and tags are not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        """The text; what JSON writes as two escapes, a character beyond 16 bits, is one again."""
        text: str = super().construct_scalar(node)
        return _PAIR.sub(lambda found: found[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping. Raises YAMLError where a key stands twice or is no scalar."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a word", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refuse_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> None:
    raise yaml.MarkedYAMLError(
        problem=f"{node.value} begins with a zero, which some take for octal", problem_mark=node.start_mark
    )


def _resolve_numbers_as_in_yaml_1_2() -> None:
    """Puts other patterns in the place of PyYAML's, which are those of YAML 1.1."""
    integer, number, refused = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "!leading-zero"
    _Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (integer, number)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    patterns = {
        refused: r"[-+]?0[0-9_]+(\.[0-9_]*)?([eE][-+]?[0-9]+)?",
        integer: r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)",
        number: r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }
    for tag, pattern in patterns.items():
        _Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern})\\Z"), list("-+0123456789."))
    _Loader.add_constructor(refused, _refuse_number)


_resolve_numbers_as_in_yaml_1_2()
