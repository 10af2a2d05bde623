"""The house: no import points up, no circle between files or rooms, and the table of rooms tells the truth."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedmef_dist"
LOOSE = {"__init__", "__main__", "api", "cli", "config"}


def modules():
    """Dotted name below the package -> path; a room's ``__init__`` has the name of the room."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(path, known):
    """Names of the package's modules that a file imports, at its top or inside of a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fedmef_dist":
            inside = node.module.partition(".")[2]
            for alias in node.names:
                whole = f"{inside}.{alias.name}" if inside else alias.name
                yield whole if whole in known else inside or "__init__"
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("fedmef_dist."))


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: {other for other in imported(path, known) if other != name} for name, path in known.items()}


def room(module):
    return module.partition(".")[0]


def rooms_of(graph):
    edges = {}
    for module, others in graph.items():
        edges.setdefault(room(module), set()).update(room(other) for other in others if room(other) != room(module))
    return edges


def circle(graph):
    """The names on one circle, in order; empty where there is none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph.get(name, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    for name in sorted(graph):
        if found := visit(name):
            return found
    return []


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_circle_between_files(graph):
    assert circle(graph) == []


def test_no_circle_between_rooms(graph):
    assert circle(rooms_of(graph)) == []


def test_nothing_lies_loose(graph):
    assert {name for name in graph if modules()[name].parent == PACKAGE} <= LOOSE


def test_every_file_says_in_its_first_line_what_it_is():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_the_table_of_rooms_is_true(graph):
    """docs/architecture.md lists each room from the lowest to the highest, with all that it knows."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|[^|]*\|([^|]*)\|$", text, flags=re.MULTILINE)
    told = {name: set(re.findall(r"\w+", knows.replace("nobody", ""))) for name, knows in rows}
    real = {name: known for name, known in rooms_of(graph).items() if name not in ("__init__", "__main__")}
    assert told == real
    order = [name for name, _ in rows]
    for name, known in told.items():
        assert all(order.index(other) < order.index(name) for other in known), f"{name} looks up"
