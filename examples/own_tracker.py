"""A tracker of one's own: the accuracies as a CSV file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmef_dist.api import Metrics, Tracker


class CsvTracker(Tracker):
    """Appends a line to ``accuracy.csv`` for each evaluated round, with as many digits as asked for."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any], digits: int = 4) -> None:
        self.path, self.digits = run_dir / "accuracy.csv", digits
        if not self.path.exists():
            self.path.write_text(f"round,{config['method']['name']}\n")

    def log(self, metrics: Metrics) -> None:
        """One line, at once on disk."""
        if "eval/accuracy" in metrics:
            with self.path.open("a") as file:
                file.write(f"{metrics['round']},{metrics['eval/accuracy']:.{self.digits}f}\n")
