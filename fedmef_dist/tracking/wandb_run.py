"""One run at Weights & Biases while it is being written: what is sent, and what is not."""

import logging
import math
import os
import re
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from fedmef_dist.base.atomic import write_text
from fedmef_dist.base.notices import tell
from fedmef_dist.base.regular import read_regular
from fedmef_dist.tracking.settings import RUN_ID, SWEEP_ID, WandbSettings

Mode = Literal["offline", "online"]
CONNECT_SECONDS = 30.0
FINISH_SECONDS = 60.0
_ID = "run-id"
_LARGEST_ID = 64
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_BINS = 32
# What each number is at its best; the run's summary then has that and not its last value.
_BEST = {"eval/accuracy": "max", "eval/loss": "min", "eval/perplexity": "min", "train/loss": "min"}
# Results only: nothing of the machine, its environment, the user's code or the repository leaves the run.
_PRIVATE: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "host": "simulation",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "reinit": "create_new",  # a run that the caller has open stays as it is
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def run_id(run_dir: Path, environ: Mapping[str, str]) -> str:
    """The identity that a run directory keeps: that which W&B's variable gives, else the one in ``wandb/run-id``.

    Where there is none it is drawn, and written there as far as the disk takes it. A variable whose value is none is
    left aside with a notice: drawn anew, the identity would be another one whenever the run goes on.
    """
    directory = run_dir / "wandb"
    found = environ.get(RUN_ID, "")
    if found and not _PLAIN_ID.fullmatch(found):
        tell(f"W&B: {RUN_ID}={found[:_LARGEST_ID]} is left aside: an id here is 1 to 64 of A-Z, a-z, 0-9, . _ -")
        found = ""
    if not found:
        with suppress(OSError, UnicodeDecodeError):
            found = read_regular(directory, _ID, _LARGEST_ID).decode("ascii").strip()
    chosen = found if _PLAIN_ID.fullmatch(found) else uuid.uuid4().hex[:12]
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / _ID, f"{chosen}\n")
    return chosen


class WandbRun:
    """What is open at W&B. Every method may raise whatever W&B does.

    Args:
        settings: section ``tracking.wandb``.
        run_dir: the run directory.
        config: the resolved configuration as plain values.
        run_id: its identity. What the server has under it is written anew, so that nothing is missing or doubled.
        mode: whether a server is asked.
        nodes: of the run, if each sends its system metrics.
        root: where W&B's own files go; None: into the run directory, in the place of what earlier processes have left
            there of the same run.
        patience: seconds for the last part at the end.
    """

    def __init__(
        self,
        settings: WandbSettings,
        run_dir: Path,
        config: Mapping[str, Any],
        run_id: str,
        mode: Mode,
        *,
        nodes: int = 1,
        root: Path | None = None,
        patience: float = FINISH_SECONDS,
    ) -> None:
        import wandb

        self._settings, self._id, self._mask, self._exit_code = settings, run_id, b"", 1
        own = {"name": settings.name or run_dir.name, "notes": settings.notes, "job_type": settings.job_type}
        with _surroundings(run_dir / "wandb"):
            self._run = _init(
                {
                    **_where(settings),
                    **_shared(settings, mode, nodes, primary=True),
                    "run_group": settings.group,
                    "run_tags": tuple(settings.tags),
                    "run_name": own["name"],
                    "run_notes": own["notes"],
                    "run_job_type": own["job_type"],
                    "run_id": run_id,
                    "root_dir": str(root or run_dir),
                    "finish_timeout": patience,
                },
                config={**config, **(_commit() if settings.git else {})},
            )
        self._histogram = wandb.Histogram
        try:
            self._prepare()
        except BaseException:
            self.release()
            raise
        if root is None:
            _forget_earlier_parts(run_dir / "wandb", run_id, Path(self._run.dir).parent)

    def _prepare(self) -> None:
        self._run.define_metric("round")
        self._run.define_metric("*", step_metric="round")
        for key, best in _BEST.items():
            self._run.define_metric(key, step_metric="round", summary=best)
        if self._settings.code:
            self._run.log_code(root=".", include_fn=_is_code)

    def log(self, metrics: Mapping[str, Any], details: Mapping[str, np.ndarray] | None = None) -> None:
        """One round: the numbers of its line in metrics.jsonl, and histograms of what ``details`` have."""
        values = {key: None if _is_not_finite(value) else value for key, value in metrics.items()}
        for key, numbers in (details or {}).items():
            known = numbers[np.isfinite(numbers)]
            if known.size:
                values[f"histogram/{key}"] = self._histogram(np_histogram=np.histogram(known, _BINS))
        self._run.log(values, step=int(metrics["round"]))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The content of summary.json; without it W&B shows the run as failed."""
        self._run.summary.update(dict(values))
        self._exit_code = 0

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint as an artifact, and its mask as another one where that has changed; W&B copies the files."""
        import wandb
        from safetensors.torch import load_file, save_file

        file, number = folder / "state.safetensors", int(folder.name.rpartition("-")[2])
        if not file.is_file():
            return  # a newer one has taken its place in the meantime
        model = wandb.Artifact(f"model-{self._id}", type="model", metadata={"round": number})
        model.add_file(str(file))
        self._run.log_artifact(model)
        mask = {key: value for key, value in load_file(file).items() if key.startswith("mask/")}
        bits = b"".join(value.numpy().tobytes() for value in mask.values())
        if bits == self._mask:
            return
        self._mask = bits
        with TemporaryDirectory() as place:
            save_file(mask, f"{place}/mask.safetensors")
            artifact = wandb.Artifact(f"mask-{self._id}", type="mask", metadata={"round": number})
            artifact.add_file(f"{place}/mask.safetensors")
            self._run.log_artifact(artifact)

    def finish(self) -> None:
        """Send or write what is left."""
        self._run.finish(self._exit_code)

    def release(self) -> None:
        """To be called last, whatever has failed: the last of our runs also ends W&B's threads and service."""
        _release(self._run, self._exit_code)


class WandbNode:
    """The system metrics of one more node, under the run that rank 0 has opened at the server.

    Args: see :class:`WandbRun`.
    """

    def __init__(self, settings: WandbSettings, run_dir: Path, run_id: str, nodes: int) -> None:
        with _surroundings(run_dir / "wandb"):
            values = {**_where(settings), **_shared(settings, "online", nodes, primary=False)}
            self._run = _init({**values, "run_id": run_id, "root_dir": str(run_dir)}, config=None)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()

    def release(self) -> None:
        """See :meth:`WandbRun.release`."""
        _release(self._run, 0)


class _Usage:
    """Which of our runs this process has open: W&B has one service for all of them."""

    def __init__(self) -> None:
        self._open, self._ours, self._lock = 0, set[str](), threading.Lock()

    def enter(self, run_id: str) -> None:
        """One more is about to be opened."""
        with self._lock:
            self._open += 1
            self._ours.add(run_id)

    def leave(self) -> None:
        """One is closed; behind the last, W&B's threads and service end, unless the caller has a run of his own.

        One of ours that W&B still takes for open could not be finished: its service has failed, for all runs.
        """
        import wandb

        with self._lock:
            self._open -= 1
            newest = wandb.setup().most_recent_active_run
            if self._open == 0 and (newest is None or newest.id in self._ours):
                with suppress(Exception, SystemExit):  # of a service that has failed, which was said then
                    wandb.teardown()


_USAGE = _Usage()


def _release(run: Any, exit_code: int) -> None:
    with suppress(Exception):  # what is open still has failed before, which was said then
        run.finish(exit_code)
    _USAGE.leave()


def _init(values: Mapping[str, Any], config: Mapping[str, Any] | None) -> Any:
    import wandb

    # Logging in talks before the run's own settings apply; this silences it for the whole process.
    wandb.setup(settings=wandb.Settings(silent=True))
    times = {"init_timeout": CONNECT_SECONDS, "finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    settings = wandb.Settings(**{**_PRIVATE, **times, **values})
    _USAGE.enter(values["run_id"])
    try:
        return wandb.init(config=dict(config) if config is not None else None, settings=settings)
    except BaseException:
        _USAGE.leave()  # the failed attempt would still claim the run's identity
        raise


def _where(settings: WandbSettings) -> dict[str, Any]:
    """Whose the run is; a sweep's runs are where the sweep is, unless somebody says otherwise."""
    if os.environ.get(SWEEP_ID) and settings.project == WandbSettings().project:
        return {"entity": settings.entity}
    return {"project": settings.project, "entity": settings.entity}


def _shared(settings: WandbSettings, mode: Mode, nodes: int, *, primary: bool) -> dict[str, Any]:
    """How the load of the machines is sent: of several nodes in W&B's shared mode, which needs its server."""
    stats = {"x_disable_stats": not settings.system_metrics}
    if not (settings.system_metrics and mode == "online" and nodes > 1):
        return {"mode": mode, **stats}
    label = {"x_label": socket.gethostname(), "x_primary": primary, "x_update_finish_state": primary}
    return {"mode": "shared", **stats, **label}


def _commit() -> dict[str, Any]:
    """The commit of the working directory as a key of the configuration, {} where that is none of a repository."""
    try:
        commit, changed = (
            subprocess.run(["git", *words], capture_output=True, timeout=10, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git": {"commit": commit.decode(), "changed": bool(changed)}}


def _is_code(path: str) -> bool:
    return path.endswith((".py", ".yaml", ".yml"))


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _forget_earlier_parts(directory: Path, run_id: str, own: Path) -> None:
    """Removes what earlier processes have written of the same run: this one writes all of it, from its first round.

    A part whose process was killed has no end, and `wandb sync` stumbles over it.
    """
    for path in directory.glob(f"*run-*-{run_id}"):
        if path.is_dir() and not path.is_symlink() and path.resolve() != own.resolve():
            rmtree(path, ignore_errors=True)


@contextmanager
def _surroundings(directory: Path) -> Iterator[None]:
    """W&B finds a home where the user has none, and its log, which may be on a full disk, says nothing of that.

    Logging would print a traceback for each line that cannot be written. Nor does W&B's client report its own errors
    and timings: it would do so of an offline run too, from two threads that nothing ends.
    """
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if not os.access(os.path.expanduser("~"), os.W_OK):  # noqa: PTH111 - Path.expanduser raises where there is none
        os.environ.setdefault("WANDB_CACHE_DIR", str(directory / "cache"))
        os.environ.setdefault("WANDB_CONFIG_DIR", str(directory / "config"))
        os.environ.setdefault("WANDB_DATA_DIR", str(directory / "data"))
        os.environ.setdefault("HOME", str(directory))
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before
        for handler in logging.getLogger("wandb").handlers:
            handler.handleError = lambda record: None  # type: ignore[method-assign]
