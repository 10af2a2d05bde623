"""The command ``wandb-sync``: a run at Weights & Biases that is made from metrics.jsonl alone, whatever was killed."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from fedmef_dist.base.errors import UserError
from fedmef_dist.base.explanation import explain
from fedmef_dist.base.notices import tell
from fedmef_dist.base.text import printable
from fedmef_dist.cluster.ending import FAULT
from fedmef_dist.runs.directory import read_configuration
from fedmef_dist.runs.summary import check_summary, read_summary
from fedmef_dist.tracking.lines import METRICS, parse_rounds, read_lines
from fedmef_dist.tracking.settings import WandbSettings, with_environment
from fedmef_dist.tracking.wandb_run import WandbRun, run_id

_FINISH_SECONDS = 600.0


@dataclass(frozen=True)
class _Content:
    """What a run directory has at one moment: whole lines and their metrics, and the summary of a finished run."""

    lines: tuple[bytes, ...]
    rounds: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None

    def follows(self, before: Sequence[bytes]) -> bool:
        """Whether the lines go on behind these: a run that has gone back to a checkpoint writes some anew."""
        return self.lines[: len(before)] == tuple(before)

    @property
    def is_whole(self) -> bool:
        """Whether the run has finished, and nothing was added behind its summary."""
        return self.summary is not None and self.summary["rounds"] == len(self.lines)


def wandb_sync(run_dir: Path, dry_run: bool, watch: bool, every: float) -> int:
    """Sends the whole run as one, from its first round; with ``watch`` goes on with new rounds until it has finished.

    Returns the exit status: 0, or 1 where W&B or its server fails.

    Raises:
        UserError: there is no run, or its metrics have a gap or are not those of its summary.
    """
    tree, settings = _configuration(run_dir)
    content = _look(run_dir)
    if content.summary is not None and not watch:  # one that goes back to a checkpoint is behind its old summary
        check_summary(run_dir, content.summary, content.lines, content.rounds)
    # Asked once: where the directory cannot keep it, it would be another one each time.
    identity = None if dry_run and not (run_dir / "wandb" / "run-id").is_file() else run_id(run_dir, {})
    _announce(run_dir, settings, content, dry_run, identity)
    if dry_run or identity is None:
        return 0
    try:
        while not _send(run_dir, settings, tree, identity, content, watch, every):
            content = _look(run_dir)
    except UserError:
        raise
    except Exception as error:  # whatever W&B trips over, in one line
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        tell(f"W&B failed: {reason}; start the command again, which sends all of the run anew")
        return FAULT
    return 0


def _configuration(run_dir: Path) -> tuple[dict[str, Any], WandbSettings]:
    try:
        tree = read_configuration(run_dir)
    except FileNotFoundError:
        raise UserError("there is no run", where=str(run_dir), mend="name a run directory, such as runs/NAME") from None
    tracking = tree.get("tracking", {})
    section = tracking.get("wandb", {}) if isinstance(tracking, dict) else None
    where = str(run_dir / "config.yaml")
    if not isinstance(section, dict):
        raise UserError("tracking.wandb is no section", where=where, mend="put the file back as the run wrote it")
    try:
        return tree, WandbSettings.model_validate(with_environment(section, os.environ))
    except ValidationError as error:
        raise explain(error, section, where, lambda key: "put the file back as the run wrote it") from None


def _look(run_dir: Path) -> _Content:
    """Raises UserError where a line is torn, missing, doubled or foreign: a run with a gap is not sent."""
    lines, _ = read_lines(run_dir)
    rounds = parse_rounds(lines, run_dir / METRICS)
    return _Content(tuple(lines), tuple(rounds), read_summary(run_dir))


def _announce(run_dir: Path, settings: WandbSettings, content: _Content, dry_run: bool, identity: str | None) -> None:
    keys = {key for metrics in content.rounds for key in metrics}
    place = "/".join(filter(None, [settings.entity, settings.project, identity or "(a new run)"]))
    summary = "with its summary" if content.is_whole else "which has not finished"
    verb = "would send" if dry_run else "sends"
    amount = f"{len(content.rounds)} rounds, {len(keys)} keys"
    print(printable(f"{verb} {run_dir}, {summary}: {amount}, as {place}"), flush=True)


def _send(
    run_dir: Path,
    settings: WandbSettings,
    tree: dict[str, Any],
    identity: str,
    content: _Content,
    watch: bool,
    every: float,
) -> bool:
    """All that is there, and with ``watch`` what comes; False where lines that were sent have changed: begin anew."""
    with TemporaryDirectory() as place:
        run = WandbRun(settings, run_dir, tree, identity, "online", root=Path(place), patience=_FINISH_SECONDS)
        try:
            return _write(run, run_dir, content, watch, every)
        finally:
            run.release()


def _write(run: WandbRun, run_dir: Path, content: _Content, watch: bool, every: float) -> bool:
    sent = 0
    while True:
        for metrics in content.rounds[sent:]:
            run.log(metrics)
        before, sent = content.lines, len(content.lines)
        if content.is_whole or not watch:
            break
        time.sleep(every)
        content = _look(run_dir)
        if not content.follows(before):
            run.finish()
            return False
    if content.summary is not None and content.is_whole:
        run.summary(content.summary)
    run.finish()
    print(f"sent {sent} rounds", flush=True)
    return True
