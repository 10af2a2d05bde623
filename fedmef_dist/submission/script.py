"""The text of a batch script. The scripts in slurm/ and those that `submit` writes come from here."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fedmef_dist.base.errors import UserError

# Slurm's forms: minutes, [hours:]minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"[0-9]+|([0-9]+:)?[0-9]+:[0-9]+|[0-9]+-[0-9]+(:[0-9]+){0,2}")
# Seconds before the time limit at which the ranks are told: a round and a checkpoint should fit.
_WARNING = 120


@dataclass(frozen=True)
class Job:
    """What a batch job asks Slurm for.

    ``array`` is the number of jobs in an array, None for a plain job; ``warn_shell`` sends the warning before the time
    limit to the batch script instead of the ranks. Raises UserError where Slurm does not take a number or the time.
    """

    name: str = "fedmef"
    output: str = "%x-%j.log"
    nodes: int = 1
    ntasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    time: str = "4:00:00"
    array: int | None = None
    warn_shell: bool = False

    def __post_init__(self) -> None:
        for option in ("nodes", "ntasks_per_node", "cpus_per_task"):
            _check(getattr(self, option) >= 1, option, getattr(self, option), "give 1 or more")
        _check(self.gpus_per_node >= 0, "gpus_per_node", self.gpus_per_node, "give 0 or more")
        _check(bool(_TIME.fullmatch(self.time)), "time", self.time, "write hours:minutes:seconds or days-hours")

    def directives(self) -> list[str]:
        """The lines that sbatch reads; no account, no partition, no host."""
        options = {
            "job-name": self.name,
            "nodes": self.nodes,
            "ntasks-per-node": self.ntasks_per_node,
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-node": self.gpus_per_node or None,
            "time": self.time,
            "array": None if self.array is None else f"0-{self.array - 1}",
            "requeue": "",
            "open-mode": "append",
            "signal": f"{'B:' if self.warn_shell else ''}USR2@{_WARNING}",
            "output": self.output,
        }
        return [f"#SBATCH --{key}{_value(value)}" for key, value in options.items() if value is not None]


def _check(condition: bool, option: str, value: object, mend: str) -> None:
    if not condition:
        raise UserError(f"{value!r} does not fit", where=f"--{option.replace('_', '-')}", mend=mend)


def _value(value: object) -> str:
    return "" if value == "" else f"={shlex.quote(str(value))}"


def log_file(folder: Path, pattern: str) -> str:
    """The file in ``folder`` that Slurm writes a job's output to; of its path only ``pattern`` is Slurm's to fill in.

    Raises UserError where the folder's path has a backslash, behind which Slurm fills in nothing.
    """
    if "\\" in str(folder):
        raise UserError("Slurm takes no path with a backslash", where=str(folder), mend="choose another path")
    return f"{str(folder).replace('%', '%%')}/{pattern}"


def source(common: str, mend: str, checked: str = "/dev/null") -> tuple[str, ...]:
    """Lines of shell that bring in common.sh, or end the job where it is missing.

    Args:
        common: its path as a word of shell.
        mend: what to do where it is missing, in words without quotes.
        checked: the file that shellcheck reads in its place.
    """
    return (
        f"common={common}",
        "[[ -r $common ]] || {",
        f"    printf '%s cannot be read: {mend}\\n' \"$common\" >&2",
        "    exit 2",
        "}",
        f"# shellcheck source={checked}",
        'source "$common"',
    )


def batch_script(job: Job, comments: Sequence[str], setup: Sequence[str], command: str) -> str:
    """A complete script: comments, directives, lines of shell that bring in common.sh, and the command."""
    lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in comments), *job.directives(), "", *setup, "", command]
    return "\n".join([*lines, ""])


def common_functions() -> str:
    """The text of common.sh, which every script sources."""
    return files("fedmef_dist.submission").joinpath("common.sh").read_text(encoding="utf-8")
