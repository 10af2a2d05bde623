"""A tracker for MLflow: the configuration as parameters, numbers as metrics, checkpoints as artifacts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow  # type: ignore[import-not-found,unused-ignore]

from fedmef_dist.api import Metrics, Tracker


class MlflowTracker(Tracker):
    """Writes into one MLflow run, which a resumed run goes on with.

    Args:
        run_dir: the run directory.
        config: the resolved configuration as plain values.
        uri: of the tracking server; None: what MLflow's environment says, or the folder mlruns.
        experiment: that gets the run.
        artifacts: whether checkpoints are uploaded.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        uri: str | None = None,
        experiment: str = "fedmef",
        artifacts: bool = False,
    ) -> None:
        self.client, self.artifacts = mlflow.MlflowClient(uri), artifacts
        found = self.client.get_experiment_by_name(experiment)
        self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        self.name, self.parameters = run_dir.name, dict(_flat(config))
        self.run_id: str | None = None

    def restore(self, state: Mapping[str, str]) -> None:
        """The run that the checkpoint knows."""
        self.run_id = state.get("run_id")

    def state(self) -> dict[str, str]:
        """The run's identity, for the checkpoint."""
        return {"run_id": self._run()}

    def log(self, metrics: Metrics) -> None:
        """One round's numbers, with the round as step."""
        for key, value in metrics.items():
            if isinstance(value, int | float) and key != "round":
                self.client.log_metric(self._run(), key, value, step=int(metrics["round"]))

    def saved(self, folder: Path) -> None:
        """A checkpoint."""
        if self.artifacts:
            self.client.log_artifacts(self._run(), str(folder), f"checkpoints/{folder.name}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The summary as tags, and the run's end."""
        for key, value in summary.items():
            self.client.set_tag(self._run(), key, value)
        self.client.set_terminated(self._run())

    def _run(self) -> str:
        if self.run_id is None:
            self.run_id = self.client.create_run(self.experiment, run_name=self.name).info.run_id
            for key, value in self.parameters.items():
                self.client.log_param(self.run_id, key, value)
        return self.run_id


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
