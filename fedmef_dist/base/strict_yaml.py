"""The part of YAML that a configuration needs, without what surprises."""

import re
from typing import Any

import yaml

from fedmef_dist.base.errors import UserError


def parse_yaml(text: str, where: str) -> Any:
    """Plain values: mappings, lists, strings, numbers, booleans, null; ``where`` names the text in messages.

    Raises:
        UserError: the text is not YAML, a key stands twice, or there are anchors, aliases or tags.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"not valid YAML: {reason}", where=where, mend="correct or quote it") from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as YAML 1.2 has it, no key stands twice, and every value is what it looks like.

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


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$"),
    list("-+0123456789."),
)
