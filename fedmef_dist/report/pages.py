"""Pages of HTML that need nothing beside themselves: one style, own script, no network, text that stays text."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = "html"


def render(template: str, title: str, **values: Any) -> str:
    """The page of a template in ``html/``. Whatever ``values`` hold is shown as text.

    A browser runs no other script than the page's own, whose SHA-256 is in its policy, and fetches nothing.
    """
    from markupsafe import Markup

    style, script = _own("page.css"), _own("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    own = {"policy": policy, "style": Markup(style), "script": Markup(script)}  # the package's own files
    return _environment().get_template(template).render(title=title, **own, **values)


@cache
def _own(name: str) -> str:
    return (files(__package__) / _FOLDER / name).read_text(encoding="utf-8")


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=PackageLoader(__package__, _FOLDER),
        trim_blocks=True,
        lstrip_blocks=True,
    )
