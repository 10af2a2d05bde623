"""`fedmef-dist submit`: a batch script for one run, or for an array of jobs that share out a grid's cells."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.errors import UserError
from fedmef_dist.base.names import plain_path
from fedmef_dist.base.text import printable
from fedmef_dist.base.trees import read_tree_file
from fedmef_dist.config import Config, load_config, to_tree
from fedmef_dist.runs.directory import claim, round_to_resume, write_configuration
from fedmef_dist.session.sweep import load_sweep
from fedmef_dist.submission.script import Job, batch_script, common_functions, log_file, source

_NAMES = {"script": "job.sbatch", "common": "common.sh"}


@dataclass(frozen=True)
class Submission:
    """What goes into the folder ``slurm`` of a run or of a sweep: file name -> text, the batch script among it."""

    folder: Path
    files: dict[str, str]

    @property
    def script(self) -> str:
        """The text of the batch script."""
        return self.files[_NAMES["script"]]

    def write(self) -> Path:
        """Write the files; returns the path of the batch script. Raises UserError where that cannot be done."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, text in self.files.items():
                write_text(self.folder / name, text)
        except OSError as error:
            raise UserError(
                f"the batch script cannot be written: {error.strerror}", where=str(self.folder), mend="make it writable"
            ) from None
        return self.folder / _NAMES["script"]


def submit(
    path: Path,
    overrides: Sequence[str],
    job: Job,
    *,
    run_dir: Path | None = None,
    grid: Path | None = None,
    max_restarts: int = 20,
    dry_run: bool = False,
) -> None:
    """Write a batch script and submit it, or print it.

    Raises UserError where the configuration, the grid or the run directory does not fit, or sbatch refuses the script.
    """
    config = load_config(path, overrides)
    if grid is None:
        run_dir = plain_path((run_dir or Path("runs") / config.name).resolve(), "--run-dir")
        submission = _one_run(config, job, run_dir, max_restarts)
    else:
        submission = _array(path, overrides, config, job, grid, max_restarts)
    if dry_run:
        print(submission.script, end="")
        return
    sbatch = _find_sbatch()
    if grid is None and run_dir is not None:
        round_to_resume(run_dir, to_tree(config), "auto", config.begins_as)
        with claim(run_dir):
            write_configuration(run_dir, to_tree(config))
    _call(sbatch, submission.write())


def _one_run(config: Config, job: Job, run_dir: Path, max_restarts: int) -> Submission:
    folder = run_dir / "slurm"
    job = replace(job, name=config.name, output=log_file(folder, "%j.log"))
    # The resolved configuration: what is edited while the job waits does not change it.
    command = shlex.join(["finish", "ranks", "run", str(run_dir / "config.yaml"), "--run-dir", str(run_dir)])
    return Submission(folder, _files(folder, job, max_restarts, command))


def _array(path: Path, overrides: Sequence[str], config: Config, job: Job, grid: Path, max_restarts: int) -> Submission:
    sweep = load_sweep(grid, overrides)
    if sweep.config.path.resolve() != path.resolve():
        raise UserError(
            f"the grid varies {sweep.config.path}, not {path}",
            where=str(grid),
            mend="give the configuration that it names",
        )
    sweep.check()
    runs = plain_path(sweep.cells[0].run_dir.parent.resolve(), "runs")
    folder = runs / "slurm"
    array = replace(job, name=config.name, output=log_file(folder, "%A_%a.log"), array=len(sweep.cells))
    # The configuration as it was given: the resolved one's defaults would count as given in cells of another method.
    base, base_text = _kept("config", sweep.config.tree)
    name, text = _kept("grid", read_tree_file(grid, "grid") | {"config": base, "runs": str(runs)})
    words = ["finish", "ranks", "sweep", str(folder / name), *overrides]
    command = f'{shlex.join(words)} --cell "$SLURM_ARRAY_TASK_ID"'
    return Submission(folder, _files(folder, array, max_restarts, command) | {base: base_text, name: text})


def _kept(what: str, tree: Mapping[str, Any]) -> tuple[str, str]:
    """A tree's file: its name, which no other content has, since an array that waits still reads its own; its text."""
    text = yaml.safe_dump(dict(tree), sort_keys=False)
    return f"{what}-{sha256(text.encode()).hexdigest()[:12]}.yaml", text


def _files(folder: Path, job: Job, max_restarts: int, command: str) -> dict[str, str]:
    python = plain_path(Path(sys.executable), "the interpreter")
    setup = (
        f"PYTHON=${{PYTHON:-{shlex.quote(str(python))}}}",
        f"MAX_RESTARTS={max_restarts}",
        *source(shlex.quote(str(folder / _NAMES["common"])), "submit the run again"),
    )
    # No path in a comment: nothing that a path may hold ends a quoted word, but a line break would end a comment.
    comments = ("Written by fedmef-dist submit; sbatch with the path of this file sends it again.",)
    return {
        _NAMES["script"]: batch_script(job, comments, setup, command),
        _NAMES["common"]: common_functions(),
    }


def _find_sbatch() -> str:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UserError(
            "there is no sbatch", where="PATH", mend="submit on a login node, or see the script with --dry-run"
        )
    return sbatch


def _call(sbatch: str, script: Path) -> None:
    done = subprocess.run([sbatch, str(script)], capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        raise UserError(f"sbatch refuses the script: {reason}", where=str(script), mend="change the options of submit")
    print(f"{printable(done.stdout.strip())}, script {script}")
