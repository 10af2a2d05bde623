"""The directory of a run: whose it is, and what may be continued in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.config import Config, differing_keys, read_tree, to_tree
from fedmef_dist.runs.checkpoint import CheckpointStore

Resume = Literal["auto", "never", "must"]

# What may change between the parts of one run: none of it changes the weights.
_HARMLESS = ("name", "evaluation", "checkpoint", "tracking", "wire", "data.root", "data.download", "federation.rounds")
_HARMLESS_RUNTIME = ("runtime.backend", "runtime.timeout")
_SHOWN = 8


def round_to_resume(run_dir: Path, config: Config, resume: Resume) -> int | None:
    """Makes sure that ``run_dir`` may be this run's and returns the round to resume from, if any. Changes nothing.

    Args:
        run_dir: the directory, there or not.
        config: what is about to run.
        resume: what to do about an earlier part of the run.

    Raises:
        UserError: the directory holds something else, or ``resume`` does not fit what is there.
    """
    old = _existing(run_dir)
    if old is not None:
        _refuse_another(run_dir, old, to_tree(config))
        if resume == "never":
            raise UserError(
                "the directory holds a run already",
                where=str(run_dir),
                mend="choose another --run-dir, delete it, or continue it with --resume auto",
            )
    saved = CheckpointStore(run_dir, config.checkpoint.keep).rounds()
    if not saved:
        if resume == "must":
            raise UserError("there is no checkpoint to resume from", where=str(run_dir), mend="leave out --resume must")
        return None
    if saved[-1] > config.federation.rounds:
        raise UserError(
            f"the run has done {saved[-1]} rounds already, more than federation.rounds={config.federation.rounds}",
            where=str(run_dir),
            mend="raise federation.rounds, or choose another --run-dir",
        )
    return saved[-1]


def claim(run_dir: Path, config: Config) -> None:
    """Makes the directory where it is missing and writes config.yaml, and inside a batch job a copy of its script.

    Raises UserError where that cannot be done.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yaml", yaml.safe_dump(to_tree(config), sort_keys=False))
        _keep_batch_script(run_dir, os.environ)
    except OSError as error:
        raise UserError(
            f"the run directory cannot be written: {error.strerror}", where=str(run_dir), mend="choose --run-dir"
        ) from None


def _keep_batch_script(run_dir: Path, environ: Mapping[str, str]) -> None:
    script, job = environ.get("FEDMEF_BATCH_SCRIPT"), environ.get("SLURM_JOB_ID")
    if script and job and Path(script).is_file():
        (run_dir / "slurm").mkdir(exist_ok=True)
        write_text(run_dir / "slurm" / f"{job}.sbatch", Path(script).read_text(encoding="utf-8"))


def _existing(run_dir: Path) -> dict[str, Any] | None:
    """The configuration of the run that the directory holds; None where it is missing or empty."""
    path = run_dir / "config.yaml"
    try:
        return read_tree(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        if run_dir.is_dir() and any(run_dir.iterdir()):
            raise UserError(
                "the directory holds something that is not a run", where=str(run_dir), mend="choose --run-dir"
            ) from None
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(
            f"cannot read the run's configuration: {reason}", where=str(path), mend="choose --run-dir"
        ) from None


def _refuse_another(run_dir: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    harmless: tuple[str, ...] = (*_HARMLESS, *_HARMLESS_RUNTIME)
    if new["optimizer"]["schedule"] == "cosine":
        # The cosine stretches over all rounds: another number of rounds is another learning rate in each.
        harmless = tuple(key for key in harmless if key != "federation.rounds")
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
