"""A run whose W&B server fails in every way that there is: same digest, one line, and how much longer it takes.

    python benchmarks/wandb_troubles.py

Each line is a real run of the quickstart with `WANDB_MODE=online`, and a server on the loopback interface that is
there, answers late, does not answer, breaks or cuts connections in mid-run, or is not there at all; twice W&B's package
itself is missing or broken. Printed are the exit status, the seconds of the command, whether its digest is that of
the run without W&B, whether a process of W&B's is left, and what stood on standard error.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from wandb_stand_in import KEY, Server, serving  # noqa: E402

# What becomes of the server: its attributes, see Server.
SERVERS = {
    "server is there": {},
    "answers after 8 s": {"late": 8.0, "slow": 8.0},
    "answers after 100 s": {"late": 100.0},
    "hangs in mid-run": {"healthy": 1, "slow": 1000.0},
    "500 in mid-run": {"healthy": 1, "fails": True},
    "connection closed in mid-run": {"healthy": 1, "cuts": True},
}
PACKAGES = {
    "package missing": "raise ModuleNotFoundError(\"No module named 'wandb'\", name='wandb')",
    "package broken": "raise RuntimeError('protobuf is too old')",
}


def play(folder: Path, rounds: int, **variables: str) -> tuple[int, float, str | None, list[str], bool]:
    """Exit status, seconds, digest, lines on standard error, and whether a process of W&B's is left."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = [sys.executable, "-m", "fedmef_dist", "run", str(ROOT / "configs" / "quickstart.yaml")]
    command += [f"federation.rounds={rounds}", "--run-dir", str(folder)]
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [variables.pop("PYTHONPATH", ""), str(ROOT)]))
    ended = subprocess.run(
        command,
        env=environ | variables | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    summary = folder / "summary.json"
    digest = json.loads(summary.read_text())["model/digest"] if summary.exists() else None
    return ended.returncode, seconds, digest, ended.stderr.splitlines(), _is_left(folder)


def _is_left(folder: Path) -> bool:
    """Whether a process has a file of the run's open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(folder) in str(link.readlink()):
                return True
        except OSError:
            continue
    return False


@contextmanager
def accepting() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def troubled(folder: Path, rounds: int) -> Iterator[tuple[str, tuple]]:
    online = {"WANDB_MODE": "online", "WANDB_API_KEY": KEY}
    for name, attributes in SERVERS.items():
        with serving() as server:
            for attribute, value in attributes.items():
                assert hasattr(Server(), attribute)
                setattr(server, attribute, value)
            yield name, play(folder / name, rounds, **online, WANDB_BASE_URL=server.url)
    with accepting() as url:
        yield "connects, never answers", play(folder / "silent", rounds, **online, WANDB_BASE_URL=url)
    yield "nobody there", play(folder / "nobody", rounds, **online, WANDB_BASE_URL="http://127.0.0.1:9")
    for name, code in PACKAGES.items():
        package = folder / name / "site" / "wandb"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"{code}\n")
        yield name, play(folder / name / "run", rounds, **online, PYTHONPATH=str(package.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=13)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, plain, expected, *_ = play(folder / "plain", options.rounds, WANDB_MODE="disabled")
        print(f"quickstart, {options.rounds} rounds: {plain:.1f} s without W&B, digest {expected}", flush=True)
        for what, (status, seconds, digest, lines, left) in troubled(folder, options.rounds):
            same = "same digest" if digest == expected else f"digest {digest}"
            rest = ", a process is left" if left else ""
            print(f"{what:30} status {status}  {seconds:6.1f} s  {same}{rest}", flush=True)
            for line in lines:
                print(f"    {line}", flush=True)


if __name__ == "__main__":
    main()
