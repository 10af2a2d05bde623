"""The code blocks of a Markdown page, and the commands in those for a shell."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *(ROOT / "docs").rglob("*.md")]
)

_FENCED = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
_OURS = ("fedmef-dist", ".venv/bin/fedmef-dist")
_LAUNCH_SCRIPT = re.compile(r"launch/(local|torchrun|mpirun|srun)\.sh$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: the word behind the fence.
        title: the file that it is, where the page says so.
        text: what is inside, without the fence's own indentation.
    """

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """Those of a page, in order."""
    found = []
    for indent, language, rest, text in _FENCED.findall(page.read_text(encoding="utf-8")):
        title = re.search(r'title="([^"]+)"', rest)
        found.append(Block(language, title and title[1], re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)))
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each command, comments left out and lines that go on put together."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next(
                (i for i, word in enumerate(words) if word in ("&&", "|", "||") or word.endswith(";")), len(words)
            )
            command = [*words[:end], *([words[end].rstrip(";")] if end < len(words) and words[end][-1] == ";" else [])]
            if command and command[0] == "do":
                del command[0]
            found += [command] if command else []
            words = words[end + 1 :]
    return found


def ours(command: list[str]) -> list[str] | None:
    """The arguments of fedmef-dist in a command, whatever launches it; None where it is another program."""
    for position, word in enumerate(command):
        if word in _OURS:
            return command[position + 1 :]
        if word == "-m" and command[position + 1 : position + 2] == ["fedmef_dist"]:
            return command[position + 2 :]
        if script := _LAUNCH_SCRIPT.search(word):
            return command[position + (1 if script[1] == "local" else 2) :]
    return None


def written_out(command: list[str]) -> bool:
    """Whether it can be typed as it is: without CAPITALS that stand for something, dots, and variables."""
    return not any(re.fullmatch(r"[A-Z_]{3,}(=.*)?|.*=[A-Z_]{3,}|.*(\.\.\.|\$|<).*", word) for word in command)
