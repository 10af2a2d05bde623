"""What the scripts of this folder share: a checkout of public code, of which they load some files.

What those files import and the comparisons do not need is replaced by empty modules.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock


def checkout(about: str) -> Path:
    """The path on the command line; prints the commit, where it is a checkout."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("path", type=Path, help="a checkout of the reference")
    path: Path = parser.parse_args().path
    found = subprocess.run(["git", "-C", str(path), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    print(f"reference: {path.name} at {found.stdout.strip() or 'an unknown commit'}")
    return path


def module(path: Path, name: str, stubs: Sequence[str] = ()) -> ModuleType:
    """The module in a file of the reference; ``stubs`` names what it imports and is not needed."""
    for stub in stubs:
        sys.modules.setdefault(stub, MagicMock())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def tell(what: str, difference: float, unit: str = "") -> None:
    """One line of result."""
    print(f"{what}: largest difference {difference:.3g}{unit}")
