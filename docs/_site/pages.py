"""The site's order of pages, its generated reference, and links out of texts that are also read in an editor.

A page that nobody has put into the order yet comes last in its folder's section, so a new file in docs/ needs no entry.
"""

import json
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

# Section -> its pages in order; a name that ends in "/" stands for what else is in that folder.
ORDER = {
    "Start": ["index.md"],
    "Tutorial": [
        "tutorial/first-run.md",
        "tutorial/look-at-a-run.md",
        "tutorial/change-something.md",
        "tutorial/several-ranks.md",
        "tutorial/sweep.md",
        "tutorial/",
    ],
    "How to": ["howto/"],
    "Guides": [
        "methods.md",
        "models.md",
        "data.md",
        "memory.md",
        "compare.md",
        "metrics.md",
        "tracking.md",
        "extending.md",
        "cluster.md",
        "gpu.md",
        "",
    ],
    "Reference": ["reference/keys.md", "reference/commands.md", "reference/python.md", "reference/"],
    "Results": ["results/"],
    "Questions": ["faq.md"],
    "Inside": ["architecture.md", "contributing.md"],
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Sets the order of the pages."""
    docs = Path(config.docs_dir)
    found = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md") if "_site" not in path.parts}
    found |= {*generated()}
    named = {name for names in ORDER.values() for name in names}
    config.nav = []
    for section, names in ORDER.items():
        pages = []
        for name in names:
            if name.endswith("/") or not name:
                pages += sorted(page for page in found - named if posixpath.dirname(page) == name.rstrip("/"))
            else:
                pages.append(name)
        config.nav.append({section: pages if len(pages) > 1 else pages[0]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turns "`docs/memory.md`" into a link to that page, and links to what is no page into plain code."""
    here = posixpath.dirname(page.file.src_uri)

    def to_page(match: re.Match[str]) -> str:
        name = match[1]
        if files.get_file_from_path(name) is None:
            return match[0]
        return f"[`{name.removesuffix('.md')}`]({posixpath.relpath(name, here)})"

    def outside(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path = posixpath.normpath(posixpath.join("docs", here, target.partition("#")[0]))
        return f"{text} (`{path}`)" if not path.startswith("docs/") and (ROOT / path).exists() else match[0]

    markdown = re.sub(r"^<!-- README: ?(.*) -->$", lambda match: _readme(match[1]), markdown, flags=re.MULTILINE)
    markdown = re.sub(r"(?<!\[)`docs/([\w/.-]+\.md)`", to_page, markdown)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)", outside, markdown)


def generated() -> dict[str, str]:
    """The pages of the reference, from the schema, the command line and the package."""
    return {
        "reference/keys.md": _keys(),
        "reference/commands.md": _commands(),
        "reference/python.md": _PYTHON,
        "reference/run-directory.md": f"# A run directory\n{_readme('A run directory')}".replace("\n### ", "\n## "),
        "reference/launchers.md": f"# Launchers\n{_readme('Launch')}",
        "reference/changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "tutorial/notebook.md": _notebook(ROOT / "examples" / "own_method.ipynb"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    }


def _notebook(path: Path) -> str:
    """A notebook as a page, with what its cells have printed."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += ["```text\n" + "".join(output["text"]) + "```" for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _readme(section: str) -> str:
    """A section of the README without its heading; the part before the first one for an empty name."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    parts = dict(part.partition("\n")[::2] for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    return parts[section] if section else text.partition("\n## ")[0].partition("\n")[2]


_PYTHON = """# Python

Start with `load_config` and `run`: [from a script or a notebook](../howto/from-python.md) shows them at work.
`read_run` reads what a run has written: [look at a run](../tutorial/look-at-a-run.md).
Everything else here is for authors of methods, models, data sets, trackers and callbacks;
[Bringing your own](../extending.md) leads through it.

## fedmef_dist.read_run

::: fedmef_dist.report.runs.read_run
    options:
      heading_level: 3

::: fedmef_dist.report.runs.Run
    options:
      heading_level: 3

## fedmef_dist.api

::: fedmef_dist.api
    options:
      heading_level: 3
"""


def _commands() -> str:
    from typer.cli import get_docs_for_click
    from typer.main import get_command

    from fedmef_dist.cli import app

    command = get_command(app)
    # Parts of others, which nobody types, are in no help.
    command.commands = {name: one for name, one in command.commands.items() if not one.hidden}
    context = command.make_context("fedmef-dist", [], resilient_parsing=True)
    text: str = get_docs_for_click(obj=command, ctx=context, name="fedmef-dist", title="Commands")
    start = "Exit status: 0 done, 2 wrong input (what, where, how to mend it), 1 a fault, 75 stopped early on a signal."
    text = text.replace("# Commands\n", f"# Commands\n\n{start}\n", 1)
    for name, one in command.commands.items():  # typer cuts them short
        text = re.sub(
            rf"^\* `{name}`: .*$", f"* [`{name}`](#fedmef-dist-{name}): {one.help.split(chr(10))[0]}", text, flags=re.M
        )
    # Placeholders such as <name> are no HTML.
    return re.sub(
        r"^(\* .*)$", lambda line: re.sub(r"<(\w+)>(?![^`]*`[^`]*:)", r"&lt;\1&gt;", line[1]), text, flags=re.M
    )


def _keys() -> str:
    from fedmef_dist.config import schema
    from fedmef_dist.methods.registry import METHODS

    whole = schema()
    lines = [
        "# Keys of a configuration",
        "",
        "Change a key in the YAML file, or on the command line as `section.key=value`. `fedmef-dist schema` prints the",
        "same for editors, which then complete and check the file.",
        "",
        "## Top level",
        "",
        *_table(whole, whole["properties"], "", sections=False),
    ]
    for section, field in whole["properties"].items():
        if section == "method":
            for method in METHODS:
                of_method = schema(method)
                settings = _resolved(of_method, of_method["properties"]["method"])
                lines += ["", f"## method: {method}", "", *_table(of_method, settings["properties"], "method.")]
        elif "properties" in (settings := _resolved(whole, field)):
            lines += ["", f"## {section}", "", settings.get("description", ""), ""]
            lines += _table(whole, settings["properties"], f"{section}.")
    return "\n".join(lines) + "\n"


def _table(schema: dict[str, Any], fields: dict[str, Any], prefix: str, sections: bool = True) -> Iterator[str]:
    yield "| key | value | default | what it is |"
    yield "| --- | --- | --- | --- |"
    yield from _rows(schema, fields, prefix, sections)


def _rows(schema: dict[str, Any], fields: dict[str, Any], prefix: str, sections: bool) -> Iterator[str]:
    for key, field in fields.items():
        inside = _resolved(schema, field).get("properties")
        if inside or key == "method":
            if sections and inside:
                yield from _rows(schema, inside, f"{prefix}{key}.", sections)
            continue
        default = f"`{_plain(field['default'])}`" if "default" in field else ""
        about = field.get("description", "")
        for sign, written in {"|": "\\|", "<": "&lt;", "{": "&#123;"}.items():
            about = about.replace(sign, written)
        yield f"| `{prefix}{key}` | {_values(schema, field)} | {default} | {about} |"


def _resolved(schema: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else field


def _values(schema: dict[str, Any], field: dict[str, Any]) -> str:
    """What may stand there: the choices, or the kind of value with its range."""
    field = _resolved(schema, field)
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(_values(schema, part) for part in field.get("anyOf") or field["oneOf"]))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{_plain(value)}`" for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_values(schema, field['items'])}" if field.get("items") else "list"
    if field.get("pattern") == ":":
        return "`package.module:Name`"
    kinds = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    kinds |= {"object": "mapping", "null": "`null`"}
    kind = kinds.get(field.get("type", ""), "any value")
    bounds = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
    limits = [sign.format(_plain(field[name])) for name, sign in bounds.items() if name in field]
    return " ".join([kind, ", ".join(limits).replace("<", "&lt;")]).strip()


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")
