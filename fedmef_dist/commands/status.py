"""How runs are, for people and for programs: `fedmef-dist status RUN_DIR ...`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.text import printable
from fedmef_dist.report.units import DASH, duration, percent
from fedmef_dist.runs.state import RunStatus, statuses
from fedmef_dist.runs.verify import verify

_WIDTH_OF_A_FILE, _WIDTH_OF_DETAILS, _WIDEST = 200, 30, 10_000
_COLUMNS = ("Run", "State", "Round", "Left", "Accuracy (%)", "Digest", "Detail")


def status(run_dirs: Sequence[Path], verifies: bool, as_json: bool) -> int:
    """Print the state of each run: one in full, several as a table where it fits; with ``as_json`` a list of objects.

    With ``verifies`` everything in a directory is read, and one with a gap counts as damaged. Returns the exit status:
    1 where such a gap was found or a directory is no run's, else 0. Raises UserError where there is no such directory.
    """
    found = statuses(run_dirs)
    if verifies:
        found = [_verified(one) for one in found]
    if as_json:
        print(json.dumps([_object(one, verifies) for one in found], indent=2))
    elif len(found) == 1:
        print(*_lines(found[0], verifies), sep="\n")
    else:
        _print_all(found, verifies)
    return int(verifies and not all(map(_is_whole, found)))


def _verified(known: RunStatus) -> RunStatus:
    """The state with the first gap in it, where there is one."""
    if not _is_whole(known) or (known.name in ("new", "running") and not known.rounds):
        return known
    try:
        verify(known.path)
    except UserError as error:
        where = f"; where: {error.where}" if error.where else ""
        return replace(known, name="damaged", detail=f"{error.what}{where}", mend=error.mend)
    return known


def _is_whole(known: RunStatus) -> bool:
    return known.name not in ("damaged", "no run")


def _lines(known: RunStatus, verified: bool) -> list[str]:
    numbers = [f"round {known.round} of {known.rounds}"] if known.rounds else []
    numbers += [f"about {duration(known.seconds_left)} left"] if known.seconds_left is not None else []
    numbers += [f"accuracy {known.accuracy:.4f}"] if known.accuracy is not None else []
    numbers += [f"digest {known.digest[:16]}"] if known.digest is not None else []
    whole = ", verified" if verified and _is_whole(known) else ""
    lines = [f"{known.path}: {known.name}{whole}", ", ".join(numbers), known.detail]
    lines += (
        [f"to go on: {known.mend}" if known.name in ("new", "stopped") else f"mend: {known.mend}"] if known.mend else []
    )
    return [printable(line) for line in lines if line]


def _print_all(found: Sequence[RunStatus], verified: bool) -> None:
    """A table, of which the terminal may fold the details alone; where names would break, the lines of each run."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    rows = [[printable(cell) for cell in _row(one)] for one in found]
    table = Table()
    for column in _COLUMNS[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(_COLUMNS[-1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width: there the table takes what it needs.
    width = get_terminal_size((_WIDTH_OF_A_FILE, 0)).columns
    console = Console(width=width, markup=False, emoji=False, highlight=False, file=sys.stdout)
    whole = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    details = max(cell_len(row[-1]) for row in rows)
    if whole - max(0, details - _WIDTH_OF_DETAILS) <= width:
        console.print(table)
    else:
        print("\n\n".join("\n".join(_lines(one, verified)) for one in found))


def _row(known: RunStatus) -> tuple[str, ...]:
    return (
        str(known.path),
        known.name,
        f"{known.round}/{known.rounds}" if known.rounds else DASH,
        duration(known.seconds_left),
        percent(known.accuracy),
        (known.digest or DASH)[:12],
        known.detail,
    )


def _object(known: RunStatus, verified: bool) -> dict[str, Any]:
    return {
        "path": str(known.path),
        "state": known.name,
        "round": known.round,
        "rounds": known.rounds,
        "seconds_left": known.seconds_left,
        "accuracy": known.accuracy,
        "digest": known.digest,
        "detail": known.detail,
        "mend": known.mend,
        "owner": known.owner.model_dump(exclude={"token"}) if known.owner is not None else None,
        "verified": verified and _is_whole(known),
    }
