"""Weights & Biases on a thread of its own: neither its start-up nor its server ever holds the run up."""

import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.lines import parse_line, read_lines
from fedmef_dist.tracking.settings import WandbSettings
from fedmef_dist.tracking.tracker import Metrics, Tracker
from fedmef_dist.tracking.wandb_run import CONNECT_SECONDS, FINISH_SECONDS, Mode, WandbRun, run_id

_RELEASE_SECONDS = 10.0  # for W&B's service to end, which waits for a server that hangs
Details = Callable[[], Mapping[str, np.ndarray]]


class WandbTracker(Tracker):
    """Sends what the run measures to W&B, offline or online, under an identity that the run directory keeps.

    A run that goes on first sends the rounds that are done once more, out of metrics.jsonl: what W&B has is then whole,
    whatever became of the process before.

    A server that cannot be reached turns the run into an offline one; any other failure ends the reporting. Either is
    said once, in one line on stderr, and the simulation goes on: metrics.jsonl has everything.

    Attributes:
        run_id: the identity.

    Args:
        settings: section ``tracking.wandb``.
        run_dir: the run directory.
        config: the resolved configuration as plain values.
        done: rounds in metrics.jsonl that are done already.
        details: what to make histograms of, by key, asked in each round.
        nodes: of the run.
    """

    def __init__(
        self,
        settings: WandbSettings,
        run_dir: Path,
        config: Mapping[str, Any],
        done: int = 0,
        details: Details = dict,
        nodes: int = 1,
    ) -> None:
        self._settings, self._run_dir, self._config = settings, run_dir, dict(config)
        self._done, self._details, self._nodes = done, details, nodes
        self.run_id = run_id(run_dir, os.environ)
        self._messages: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._failed, self._over = False, threading.Event()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, metrics: Metrics) -> None:
        """Queue one round; returns at once."""
        details = dict(self._details()) if self._settings.histograms else {}
        self._messages.put(("log", (dict(metrics), details)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Queue the summary; returns at once."""
        self._messages.put(("summary", dict(summary)))

    def saved(self, folder: Path) -> None:
        """Queue the checkpoint, where it is to be an artifact; returns at once."""
        if self._settings.artifacts:
            self._messages.put(("checkpoint", folder))

    def close(self) -> None:
        """Write out what is queued; gives up with a message after about two minutes."""
        self._messages.put(("close", None))
        if self._over.wait(CONNECT_SECONDS + 1.5 * FINISH_SECONDS):
            self._thread.join(_RELEASE_SECONDS)
        else:
            self._fail("did not finish in time; `fedmef-dist wandb-sync` sends the whole run")

    def _work(self) -> None:
        run = None
        try:
            run = self._open()
            for line in read_lines(self._run_dir)[0][: self._done]:
                run.log(parse_line(line))
            while (message := self._messages.get())[0] != "close":
                _hand_on(run, *message)
            run.finish()
        except ImportError as error:
            self._fail(f"cannot be imported: {first_line(error)}; the run goes on without it")
        except Exception as error:  # whatever W&B trips over is its own affair, never the simulation's
            later = "the run goes on, and `fedmef-dist wandb-sync` sends all of it later"
            self._fail(f"stopped: {first_line(error)}; {later}")
        finally:
            self._over.set()
            if run is not None:
                run.release()

    def _fail(self, message: str) -> None:
        """Say once that W&B has got no further."""
        if not self._failed:
            self._failed = True
            _tell(message)

    def _open(self) -> WandbRun:
        import wandb

        try:
            return self._start("offline" if self._settings.mode == "offline" else "online")
        except wandb.Error as error:
            if self._settings.mode == "offline":
                raise
            _tell(f"is offline: {first_line(error)}; `fedmef-dist wandb-sync {self._run_dir}` uploads later")
        return self._start("offline")

    def _start(self, mode: Mode) -> WandbRun:
        return WandbRun(self._settings, self._run_dir, self._config, self.run_id, mode, nodes=self._nodes)


def _hand_on(run: WandbRun, kind: str, content: Any) -> None:
    match kind:
        case "log":
            run.log(*content)
        case "summary":
            run.summary(content)
        case "checkpoint":
            run.checkpoint(content)


def first_line(error: Exception) -> str:
    """What an exception of W&B's says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tell(message: str) -> None:
    tell(f"W&B {message}")
