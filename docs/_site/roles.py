"""Docstrings refer to names as ``:class:`Name```; on the site these are code."""

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):(`[^`]+`)")


class Roles(Extension):
    """Takes the roles away before Markdown is rendered."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Each module, class, function and attribute that has been read."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(r"\1", obj.docstring.value)
