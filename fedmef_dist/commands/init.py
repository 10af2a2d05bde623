"""The command ``init``: a folder to start from, with the package's configurations and examples of one's own code."""

import os
from collections.abc import Iterator
from pathlib import Path

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable

_ROOT = Path(__file__).parents[2]
_IN_A_WHEEL = Path(__file__).parents[1] / "starter"


def init_command(folder: Path) -> None:
    """Writes ``configs/`` and ``examples/`` into ``folder``, and prints what to type next.

    Raises:
        UserError: one of the files is there already, and nothing was written; or they cannot be written.
    """
    files = {folder / name: path for name, path in starter_files()}
    for target in files:
        if os.path.lexists(target):  # where that cannot be told, writing fails too
            raise UserError("a file of that name is there already", where=str(target), mend="name another folder")
    try:
        for target, path in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"the folder cannot be written: {error.strerror or error}", where=str(folder), mend="name another folder"
        ) from error
    change = "" if folder.resolve() == Path.cwd() else f"cd {printable(str(folder))}\n"
    print(f"{len(files)} files are in {printable(str(folder))}: configs/ for runs, examples/ for code of your own\n")
    print(f"{change}{_NEXT}", end="")


_NEXT = """\
fedmef-dist run configs/quickstart.yaml     # FedMef on the bundled digits; after Ctrl-C the same command goes on
fedmef-dist compare runs/quickstart         # tables and a page: runs/quickstart/report/report.html
fedmef-dist --help                          # everything else; examples/README.md: your own method, model, data
"""


def starter_files() -> Iterator[tuple[str, Path]]:
    """Each file that ``init`` writes: its name below the folder, and where it is read from.

    A wheel has them inside the package; in the repository they are the very files.
    """
    source = _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else _ROOT
    for pattern in ("configs/*.yaml", "configs/sweeps/*.yaml", "configs/clusters/*.yaml", "examples/*.*"):
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                yield path.relative_to(source).as_posix(), path
