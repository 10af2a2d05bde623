"""Makes the pictures of the documentation: python docs/_site/pictures.py, in the repository's folder.

Plays the quickstart in a terminal of its own (needs tmux) and shows its page in a browser (needs chromium). The files
in docs/pictures/ are replaced.
"""

import io
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "docs" / "pictures"
COMMAND = "fedmef-dist run configs/quickstart.yaml --run-dir runs/first"
COLUMNS, LINES = 110, 16
BROWSER = (
    "chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=4000"
)


def terminal(folder: Path, seconds: int) -> None:
    """What a user sees of a run after some seconds; the run itself goes on to its end."""
    program = f"{sys.executable} -m fedmef_dist {COMMAND.partition(' ')[2]}"
    # Its own server, which ends with it.
    tmux = ["tmux", "-L", f"pictures-{folder.name}"]
    shell = f"cd {shlex.quote(str(folder))}; PYTHONPATH={shlex.quote(str(ROOT))} {program}; sleep 3"
    subprocess.run([*tmux, "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), shell], check=True)
    time.sleep(seconds)
    capture = [*tmux, "capture-pane", "-e", "-p"]
    screen = subprocess.run(capture, check=True, capture_output=True, text=True).stdout.rstrip()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text.assemble(("$ ", "bold green"), COMMAND, "\n", Text.from_ansi(screen)))
    # Without the fonts that rich would fetch from elsewhere.
    template = CONSOLE_SVG_FORMAT
    while "@font-face" in template:
        head, _, rest = template.partition("@font-face")
        template = head + rest.partition("}}")[2]
    console.save_svg(str(PICTURES / "terminal.svg"), title="", theme=MONOKAI, code_format=template)
    while subprocess.run([*tmux, "has-session"], check=False, capture_output=True).returncode == 0:
        time.sleep(1)


def page(folder: Path) -> None:
    """The top of the page over the run, and a plot."""
    command = [sys.executable, "-m", "fedmef_dist", "compare", "runs/first"]
    subprocess.run(command, cwd=folder, check=True, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"})
    report = folder / "runs" / "first" / "report"
    shot = folder / "page.png"
    options = [f"--user-data-dir={folder / 'browser'}", "--window-size=1280,1500", f"--screenshot={shot}"]
    address = (report / "report.html").as_uri()
    subprocess.run([*BROWSER.split(), *options, address], check=True, capture_output=True)
    save(shot, PICTURES / "page.png", 960)
    save(report / "accuracy_wire.png", PICTURES / "plot.png", 800)


def save(source: Path, target: Path, width: int) -> None:
    """A smaller picture of 64 colours, which keeps letters sharp and files small."""
    with Image.open(source) as image:
        height = round(image.height * width / image.width)
        image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).quantize(64).save(target, optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["cp", "-r", str(ROOT / "configs"), name], check=True)
        terminal(Path(name), seconds=int(sys.argv[1]) if len(sys.argv) > 1 else 30)
        page(Path(name))
