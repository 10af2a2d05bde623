"""Weights & Biases on a thread of its own: neither its start-up nor its server ever holds the run up."""

import queue
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedmef_dist.base.notices import tell
from fedmef_dist.tracking.settings import WandbSettings
from fedmef_dist.tracking.tracker import Metrics, Tracker

_STATE_KEY = "wandb/run_id"
_CONNECT_SECONDS = 30.0
_FINISH_SECONDS = 60.0


class WandbTracker(Tracker):
    """Sends what the run measures to W&B, offline or online, resumed under the id in ``state``.

    A server that cannot be reached turns the run into an offline one; any other failure ends the reporting. Either is
    said once, in one line on stderr, and the simulation goes on: metrics.jsonl has everything.
    """

    def __init__(
        self, settings: WandbSettings, run_dir: Path, config: Mapping[str, Any], state: Mapping[str, str]
    ) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._config = dict(config)
        self._resumed = _STATE_KEY in state
        self._id = state.get(_STATE_KEY) or uuid.uuid4().hex[:12]
        self._messages: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._run: Any = None
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, metrics: Metrics) -> None:
        """Queue one round; returns at once."""
        self._messages.put(("log", dict(metrics)))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Queue the summary; returns at once."""
        self._messages.put(("summary", dict(summary)))

    def close(self) -> None:
        """Write out what is queued; gives up with a message after about two minutes."""
        self._messages.put(("close", {}))
        self._thread.join(_CONNECT_SECONDS + 1.5 * _FINISH_SECONDS)
        if self._thread.is_alive():
            _tell("did not finish in time; the run's own files are complete")

    def state(self) -> dict[str, str]:
        """The run's id, known before W&B has started."""
        return {_STATE_KEY: self._id}

    def _work(self) -> None:
        try:
            self._run = self._start()
            while (message := self._messages.get())[0] != "close":
                self._send(*message)
            self._run.finish()
        except Exception as error:  # whatever W&B trips over is its own affair, never the simulation's
            _tell(f"stopped: {_first_line(error)}; metrics.jsonl goes on")

    def _send(self, kind: str, values: dict[str, Any]) -> None:
        if kind == "log":
            self._run.log(values, step=values["round"])
        else:
            self._run.summary.update(values)

    def _start(self) -> Any:
        import wandb

        # Logging in talks before the run's own settings apply; this silences it for the whole process.
        wandb.setup(settings=wandb.Settings(silent=True))
        try:
            return self._init("offline" if self._settings.mode == "offline" else "online")
        except wandb.Error as error:
            if self._settings.mode == "offline":
                raise
            _tell(f"is offline: {_first_line(error)}; `wandb sync {self._run_dir / 'wandb'}` uploads later")
        # The failed attempt still claims the id until its service has gone.
        wandb.teardown(exit_code=1)
        wandb.setup(settings=wandb.Settings(silent=True))
        return self._init("offline")

    def _init(self, mode: Literal["offline", "online"]) -> Any:
        import wandb

        own = self._settings
        return wandb.init(
            config=self._config,
            settings=wandb.Settings(
                mode=mode,
                project=own.project,
                entity=own.entity,
                run_group=own.group,
                run_tags=tuple(own.tags),
                run_name=self._run_dir.name,
                run_id=self._id,
                resume="allow" if self._resumed else None,
                root_dir=str(self._run_dir),
                init_timeout=_CONNECT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                **_PRIVATE,
            ),
        )


# Results only: nothing of the machine, its environment, the user's code or the repository leaves the run.
_PRIVATE: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "host": "simulation",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _tell(message: str) -> None:
    tell(f"W&B {message}")
