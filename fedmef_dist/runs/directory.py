"""The directory of a run: whose it is, and what may be continued in it."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmef_dist.base.atomic import is_left_over, make_directory, write_bytes, write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.notices import tell
from fedmef_dist.base.regular import read_regular
from fedmef_dist.base.trees import differing_keys, read_tree
from fedmef_dist.runs.checkpoint_files import complete_rounds, is_whole, passed_over
from fedmef_dist.runs.owner import LOCK, Owner
from fedmef_dist.runs.owner_record import OWNER
from fedmef_dist.runs.succession import is_of_a_succession
from fedmef_dist.runs.summary import SUMMARY

CONFIG = "config.yaml"
Resume = Literal["auto", "never", "must"]

# What may change between the parts of one run: none of it changes the weights.
_HARMLESS = ("name", "evaluation", "checkpoint", "tracking", "wire.stateful_clients", "data.root", "data.download")
_HARMLESS_RUNTIME = ("runtime.backend", "runtime.slots", "runtime.timeout")
_SHOWN = 8
_LARGEST = 1 << 18  # a configuration has some three thousand bytes


def round_to_resume(
    run_dir: Path, tree: Mapping[str, Any], resume: Resume, begins_as: Callable[[int], bool]
) -> int | None:
    """Makes sure that ``run_dir`` may be this run's and returns the round to resume from, if any. Changes nothing.

    Args:
        run_dir: the directory, there or not.
        tree: the resolved configuration of what is about to run, as plain values.
        resume: what to do about an earlier part of the run.
        begins_as: whether that part, as one of so many rounds, has come to the weights that this run comes to.

    Raises:
        UserError: the directory holds something else, or ``resume`` does not fit what is there.
    """
    old = _existing(run_dir)
    if old is not None:
        _refuse_another(run_dir, old, tree, begins_as)
        if resume == "never":
            raise UserError(
                "the directory holds a run already",
                where=str(run_dir),
                mend="choose another --run-dir, delete it, or continue it with --resume auto",
            )
    saved, rounds = complete_rounds(run_dir), tree["federation"]["rounds"]
    for number in reversed(saved):
        if number > rounds and is_whole(run_dir, number):  # a damaged one is passed over when it is loaded
            raise UserError(
                f"the run has done {number} rounds already, more than federation.rounds={rounds}",
                where=str(run_dir),
                mend="raise federation.rounds, or choose another --run-dir",
            )
    if not saved and os.path.lexists(run_dir / SUMMARY):
        raise UserError(
            "the run is finished and has no checkpoints: it would be done once more, over what it has written",
            where=str(run_dir),
            mend=f"choose another --run-dir; to do it again nevertheless, delete {SUMMARY}",
        )
    if not saved and resume == "must":
        raise UserError("there is no checkpoint to resume from", where=str(run_dir), mend="leave out --resume must")
    return saved[-1] if saved else None


def refuse_missing(run_dir: Path) -> None:
    """Raises UserError where there is no such directory, or where it lies out of reach."""
    try:
        found = stat.S_ISDIR(run_dir.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except OSError as error:  # a folder above it that is somebody else's, a loop of links, a name that is too long
        raise UserError(
            f"the run directory cannot be read: {error.strerror}", where=str(run_dir), mend="name one that can"
        ) from None
    if not found:
        raise UserError(
            f"there is no run directory {run_dir}", mend=f"make one with: fedmef-dist run CONFIG --run-dir {run_dir}"
        )


def refuse_finished(run_dir: Path, tree: Mapping[str, Any], begins_as: Callable[[int], bool]) -> None:
    """Raises UserError where the finished run in ``run_dir`` is of another configuration than ``tree``, or of none.

    A key that only one of the two has is another version's, and no other wish. ``begins_as``: :func:`round_to_resume`.
    """
    old = _existing(run_dir) or {}
    _refuse_another(run_dir, _common(old, tree), _common(tree, old), begins_as)


def _common(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without keys that the other one has not."""
    both = {key: (value, other[key]) for key, value in tree.items() if key in other}
    return {
        key: _common(value, second) if isinstance(value, dict) and isinstance(second, dict) else value
        for key, (value, second) in both.items()
    }


def claim(run_dir: Path, rounds: int = 0) -> Owner:
    """Makes the directory where it is missing and takes it: a context manager that gives it back; see `Owner`.

    ``rounds`` are to do. Raises UserError where another run writes there, or nothing can be written.
    """
    try:
        make_directory(run_dir)
        strange = passed_over(run_dir)
        owner = Owner(run_dir, rounds)
    except OSError as error:
        raise _not_writable(run_dir, error) from None
    for name in strange:
        tell(f"passed over, for it is no checkpoint: {run_dir / 'checkpoints'}/{name}")
    return owner


def write_configuration(run_dir: Path, tree: Mapping[str, Any]) -> None:
    """Writes config.yaml, and inside a batch job a copy of its script. Raises UserError where that cannot be done."""
    try:
        write_text(run_dir / CONFIG, yaml.safe_dump(dict(tree), sort_keys=False))
        _keep_batch_script(run_dir, os.environ)
    except OSError as error:
        raise _not_writable(run_dir, error) from None


def read_configuration(run_dir: Path) -> dict[str, Any]:
    """The tree of config.yaml. Raises FileNotFoundError without one, UserError where it is something else."""
    path = run_dir / CONFIG
    try:
        return read_tree(read_regular(run_dir, CONFIG, _LARGEST).decode(), str(path))
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"cannot read the run's configuration: {reason}", where=str(path), mend="choose another directory"
        ) from None


def _not_writable(run_dir: Path, error: OSError) -> UserError:
    return UserError(
        f"the run directory cannot be written: {error.strerror}", where=str(run_dir), mend="choose --run-dir"
    )


def _keep_batch_script(run_dir: Path, environ: Mapping[str, str]) -> None:
    script, job = environ.get("FEDMEF_BATCH_SCRIPT"), environ.get("SLURM_JOB_ID")
    content = _script(Path(script)) if script and job else None
    if content is not None:
        (run_dir / "slurm").mkdir(exist_ok=True)
        write_bytes(run_dir / "slurm" / f"{job}.sbatch", content)


def _script(path: Path) -> bytes | None:
    """The content of a script; None where it is out of reach, as on another node, or none: a shell names itself."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    return content if content.startswith(b"#!") else None


def is_of_a_start(name: str) -> bool:
    """Whether a start writes a file of this name before the directory has its configuration."""
    return name in (OWNER, LOCK) or is_left_over(name) or is_of_a_succession(name)


def _existing(run_dir: Path) -> dict[str, Any] | None:
    """The configuration of the run that the directory holds; None where it is missing or empty."""
    try:
        return read_configuration(run_dir)
    except FileNotFoundError:
        # A start that was killed at once has left no more than these.
        if run_dir.is_dir() and not all(is_of_a_start(path.name) for path in run_dir.iterdir()):
            raise UserError(
                "the directory holds something that is not a run", where=str(run_dir), mend="choose --run-dir"
            ) from None
        return None


def _refuse_another(
    run_dir: Path, old: Mapping[str, Any], new: Mapping[str, Any], begins_as: Callable[[int], bool]
) -> None:
    harmless: tuple[str, ...] = (*_HARMLESS, *_HARMLESS_RUNTIME)
    federation = old.get("federation")
    rounds = federation.get("rounds") if isinstance(federation, Mapping) else None
    if isinstance(rounds, int) and begins_as(rounds):
        harmless = (*harmless, "federation.rounds")
    keys = [
        key
        for key in differing_keys(dict(old), dict(new))
        if not any(key == known or key.startswith(f"{known}.") for known in harmless)
    ]
    if keys:
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        raise UserError(
            f"the directory holds another configuration's run; different: {', '.join(keys[:_SHOWN])}{more}",
            where=str(run_dir),
            mend="choose another --run-dir, or undo the change",
        )
