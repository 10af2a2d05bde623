"""The numbers of metrics.jsonl as TensorBoard reads them, in ``tensorboard/`` of the run directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.base.errors import UserError
from fedmef_dist.tracking.lines import parse_line, read_lines
from fedmef_dist.tracking.tracker import Metrics, Tracker


def find_tensorboard() -> None:
    """Raises UserError where the package is not installed; that is better known before anything starts."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"tensorboard cannot be imported: {error}",
            where="tracking.tensorboard",
            mend="pip install 'fedmef_dist[tensorboard]', or set it to false",
        ) from None


class TensorboardTracker(Tracker):
    """Each number under its key, with the round as its step.

    A run that goes on writes the rounds that are done once more, in the place of the files of earlier processes: those
    may lack what a killed one had not written, and have rounds that do not count.

    Args:
        run_dir: the run directory.
        done: rounds in metrics.jsonl that are done already.
    """

    def __init__(self, run_dir: Path, done: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = run_dir / "tensorboard"
        for path in directory.glob("events.out.tfevents.*"):
            path.unlink()
        self._writer = SummaryWriter(str(directory))
        for line in read_lines(run_dir)[0][:done]:
            self.log(parse_line(line))

    def log(self, metrics: Metrics) -> None:
        """Write the round's numbers; texts are left out."""
        for key, value in metrics.items():
            if isinstance(value, int | float) and key != "round":
                self._writer.add_scalar(key, value, int(metrics["round"]))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary as a text."""
        rows = "\n".join(f"| {key} | {value} |" for key, value in summary.items())
        self._writer.add_text("summary", f"| key | value |\n|---|---|\n{rows}")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
