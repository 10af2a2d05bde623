"""A sweep: one run for every combination of values, in the cells of a grid."""

import itertools
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.names import home_expanded, plain_path
from fedmef_dist.base.settings import Settings
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import read_tree_file
from fedmef_dist.cluster.ending import INTERRUPTED
from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import STOPPED_EARLY
from fedmef_dist.cluster.interruption import listening
from fedmef_dist.cluster.local_ranks import run_ranks
from fedmef_dist.cluster.mpirun import find_mpirun, run_under
from fedmef_dist.config import ConfigFile, find_guests, to_tree
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.runs.directory import refuse_finished, round_to_resume
from fedmef_dist.runs.summary import read_summary

Value = bool | int | float | str | None
Grid = dict[str, list[Value]]
_MOST_CELLS = 1_000_000
_LONGEST_GROUP = 128
_LONGEST_NAME = 255  # that file systems take
_ONE, _SEVERAL = "one grid", "several grids"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def _kind_of(grid: Any) -> str:
    return _SEVERAL if isinstance(grid, list) else _ONE


class SweepSettings(Settings):
    """A grid file: one run of ``config`` for every combination of the values in ``grid``, or in each of several."""

    config: str = Field(min_length=1, description="YAML file with the configuration, as seen from the grid file")
    runs: str = Field(min_length=1, description="folder that gets a run directory for each cell")
    grid: Annotated[
        Annotated[Annotated[Grid, Field(min_length=1)], Tag(_ONE)]
        | Annotated[Annotated[list[Annotated[Grid, Field(min_length=1)]], Field(min_length=1)], Tag(_SEVERAL)],
        Discriminator(_kind_of),
    ] = Field(
        description="key of the configuration -> its values; the first key varies slowest. Or a list of such grids, "
        "one behind the other"
    )

    @property
    def grids(self) -> list[Grid]:
        """All of them."""
        return self.grid if isinstance(self.grid, list) else [self.grid]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its number from 0, its run directory and what it changes in the configuration.

    ``group`` is the same for the cells that differ only in their seed.
    """

    number: int
    run_dir: Path
    overrides: tuple[str, ...]
    group: str


@dataclass(frozen=True)
class Sweep:
    """The runs that a grid file asks for."""

    path: Path
    config: ConfigFile
    cells: tuple[Cell, ...]

    def check(self) -> None:
        """Raises UserError where the configuration of a cell is wrong, or its directory holds another one's run."""
        wrong = [(cell, error) for cell in self.cells if (error := self._problem(cell)) is not None]
        if wrong:
            cell, error = wrong[0]
            more = f" (and {len(wrong) - 1} more of {len(self.cells)} cells)" if len(wrong) > 1 else ""
            raise UserError(f"cell {cell.number}: {error.what}{more}", where=error.where, mend=error.mend)

    def _problem(self, cell: Cell) -> UserError | None:
        try:
            if not self.is_finished(cell):
                config, _ = self.config.with_overrides(cell.overrides)
                find_guests(config)
                round_to_resume(cell.run_dir, to_tree(config), "auto", config.begins_as)
        except UserError as error:
            return error
        return None

    def is_finished(self, cell: Cell) -> bool:
        """Whether nothing of the cell is left to do; raises UserError as :meth:`state` does."""
        done, wanted = self.state(cell)
        return done == wanted

    def talks_through_mpi(self, cell: Cell) -> bool:
        """Whether the cell's run has ``backend: mpi``, whose ranks mpirun has to start."""
        config, _ = self.config.with_overrides(cell.overrides)
        return config.runtime.backend == "mpi"

    def state(self, cell: Cell) -> tuple[int, int]:
        """Rounds that the cell's run has done, as its checkpoints and its summary say, and rounds that it is to do.

        A run that a callback has stopped is to do no more than it has done.

        Raises UserError where the configuration is wrong, or a finished run is another one's.
        """
        config, _ = self.config.with_overrides(cell.overrides)
        wanted = config.federation.rounds
        if (summary := read_summary(cell.run_dir)) is not None:
            done = int(summary["rounds"])
            wanted = done if summary.get("stopped") is not None else wanted
            if done >= wanted:
                refuse_finished(cell.run_dir, to_tree(config), config.begins_as)
            return min(done, wanted), wanted
        saved = CheckpointStore(cell.run_dir, config.checkpoint.keep).rounds()
        # Without its summary a run is not finished, even where its last round is saved.
        return min(saved[-1] if saved else 0, wanted - 1), wanted


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The cells of a grid file in the order of their numbers; ``overrides`` apply to each of them.

    Raises:
        UserError: the file cannot be read or is no grid, has too many cells, or two that would share a run directory,
            or one whose name would be too long; the configuration that it names cannot be read.
    """
    settings = _read(path)
    amounts = [prod(map(len, grid.values())) for grid in settings.grids]
    amount = sum(amounts)
    if 0 in amounts:
        raise _wrong(path, "a key of the grid has no values", "give each key a list such as [0.1, 0.2]")
    if amount > _MOST_CELLS:
        raise _wrong(path, f"the grid has {amount:,} cells", f"divide it: {_MOST_CELLS:,} are the most")
    for key in (key for grid in settings.grids for key in grid):
        if not all(key.split(".")) or "=" in key:
            raise _wrong(path, f"{key!r} is no key of a configuration", "write section.key: [value, ...]")
    runs = plain_path(home_expanded(settings.runs), f"runs in {path}")
    combinations = [(list(grid), values) for grid in settings.grids for values in itertools.product(*grid.values())]
    cells = tuple(_cell(number, runs, keys, values, overrides) for number, (keys, values) in enumerate(combinations))
    name, times = Counter(cell.run_dir.name for cell in cells).most_common(1)[0]
    if times > 1:
        raise _wrong(path, f"two cells have the run directory {name}", "give each value once")
    longest = max(cells, key=lambda cell: len(cell.run_dir.name))
    if len(longest.run_dir.name) > _LONGEST_NAME:
        what = f"the run directory of cell {longest.number} would have a name of {len(longest.run_dir.name)} characters"
        raise _wrong(path, what, f"give shorter values or fewer keys: {_LONGEST_NAME} are the most")
    return Sweep(path, ConfigFile(path.parent / home_expanded(settings.config)), cells)


def _read(path: Path) -> SweepSettings:
    try:
        return SweepSettings.model_validate(read_tree_file(path, "grid"))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        # Beyond the list's index the location names the types that were tried.
        place = [str(part) for part in problem["loc"] if part not in (_ONE, _SEVERAL)]
        key = ".".join(place[: 4 if _SEVERAL in problem["loc"] else 3]) or "grid file"
        if problem["type"] == "bool_type":  # the first of the types that a value may have
            raise _wrong(
                path, f"{key} is {problem['input']!r:.60}", "a value is a number, a text, true, false or null"
            ) from None
        mend = "a grid file has the keys config, runs and grid: {key: [value, ...]}, or a list of such grids"
        raise _wrong(path, f"{key}: {problem['msg']}", mend) from None


def _wrong(path: Path, what: str, mend: str) -> UserError:
    return UserError(what, where=str(path), mend=mend)


def _cell(number: int, runs: Path, keys: list[str], values: Sequence[Value], overrides: Sequence[str]) -> Cell:
    shown = _short_names(keys)
    words = {key: f"{shown[key]}-{_word(value)}" for key, value in zip(keys, values, strict=True)}
    name = _UNSAFE.sub("-", "_".join(words.values()))
    alike = _UNSAFE.sub("-", "_".join(word for key, word in words.items() if key != "seed"))
    changes = [f"{key}={json.dumps(value)}" for key, value in zip(keys, values, strict=True)]
    group = "/".join([runs.name, alike] if alike else [runs.name])[:_LONGEST_GROUP]
    return Cell(number, runs / name, (f"name={name}", *overrides, *changes), group)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last word of each key, or the whole key where another one ends alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)}


def _word(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run_sweep(sweep: Sweep, overrides: Sequence[str], ranks: int) -> int:
    """Run the unfinished cells one after another, each on so many ranks of this machine; returns the exit status.

    Several ranks of ``runtime.backend: mpi`` are started by mpirun.

    A cell that fails does not stop the others: 0 if all are finished, 2 if those that failed were all wrong input, else
    1. A signal stops the sweep behind the cell that runs, which it stops too: 75, or 130 after a second INT; 0 if that
    was the last one and has finished all the same. Raises UserError under a launcher of several ranks, and
    before the first cell starts where one of them cannot.
    """
    if detect(os.environ).world_size > 1:
        raise UserError(
            "a launcher with several ranks can run only one cell",
            where="command line",
            mend="add --cell NUMBER, or leave the launcher out and give --ranks",
        )
    sweep.check()
    finished = {cell.number for cell in sweep.cells if sweep.is_finished(cell)}
    waiting = [cell for cell in sweep.cells if cell.number not in finished]
    by_mpi = {cell for cell in waiting if ranks > 1 and sweep.talks_through_mpi(cell)}
    mpirun = find_mpirun("runtime.backend: mpi") if by_mpi else ()
    with listening(ends_process=True) as interruption:
        statuses: list[int] = []
        for cell in sweep.cells:
            if interruption.asked_at is not None:
                return STOPPED_EARLY
            if cell.number in finished:
                _tell_finished(cell)
                statuses.append(0)
                continue
            print(f"cell {cell.number}: {cell.run_dir}", flush=True)
            arguments = ["sweep", str(sweep.path), *overrides, "--cell", str(cell.number)]
            statuses.append(run_under(mpirun, arguments, ranks) if cell in by_mpi else run_ranks(arguments, ranks))
            if statuses[-1] in (STOPPED_EARLY, INTERRUPTED):
                return statuses[-1]
        return _closing(sweep, statuses)


def _closing(sweep: Sweep, statuses: Sequence[int]) -> int:
    """Say which cells failed; the exit status of the sweep."""
    failed = [(cell, status) for cell, status in zip(sweep.cells, statuses, strict=True) if status]
    for cell, status in failed:
        print(f"cell {cell.number} failed with exit status {status}: {cell.run_dir}", file=sys.stderr)
    print(f"{len(statuses) - len(failed)} of {len(statuses)} cells are finished")
    return 0 if not failed else 2 if all(status == 2 for _, status in failed) else 1


def run_cell(sweep: Sweep, number: int) -> None:
    """One cell, alone or as each rank under a launcher; says so where its run is finished already."""
    from fedmef_dist.session.session import run_command

    if not 0 <= number < len(sweep.cells):
        raise UserError(
            f"there is no cell {number}",
            where=f"{sweep.path}, which has {len(sweep.cells)} cells",
            mend=f"give --cell 0 to {len(sweep.cells) - 1}",
        )
    cell = sweep.cells[number]
    if not sweep.is_finished(cell):
        os.environ.setdefault("WANDB_RUN_GROUP", cell.group)  # counts where the configuration names no group
        run_command(sweep.config.path, list(cell.overrides), cell.run_dir, "auto")
    elif detect(os.environ).rank == 0:
        _tell_finished(cell)


def _tell_finished(cell: Cell) -> None:
    print(f"finished before: {cell.run_dir}", flush=True)


def show_cells(sweep: Sweep) -> int:
    """Print a line for each cell: its number, its run directory and how far it is, or what is wrong with it.

    Returns the exit status: 0, or 2 where a cell is wrong.
    """
    status = 0
    for cell in sweep.cells:
        try:
            done, wanted = sweep.state(cell)
            state = "finished" if done == wanted else f"{done} of {wanted} rounds" if done else "not started"
        except UserError as error:
            status, state = 2, f"wrong: {printable(error.what)}"
        print(f"{cell.number:>4}  {cell.run_dir}  {state}")
    return status
