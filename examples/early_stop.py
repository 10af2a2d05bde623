"""A callback of one's own: halves the learning rate on a plateau, and stops the run on the last of them."""

from collections.abc import Mapping
from typing import Any

from fedmef_dist.api import Callback, Control, Metrics


class HalveThenStop(Callback):
    """What to do where the test loss has not fallen since the best evaluation so far."""

    def __init__(self, halvings: int = 2) -> None:
        self.halvings = halvings
        self.best: float | None = None

    def on_evaluate(self, metrics: Metrics, control: Control) -> None:
        """Acts on a plateau."""
        loss = float(metrics["eval/loss"])
        if self.best is None or loss < self.best:
            self.best = loss
        elif self.halvings == 0:
            control.stop(f"the test loss stays at {self.best:.4f}")
        else:
            self.halvings -= 1
            control.rate_factor /= 2

    def state(self) -> dict[str, Any]:
        """For the checkpoint: a resumed run decides as one that was never interrupted."""
        return {"halvings": self.halvings, "best": self.best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        self.halvings, self.best = state["halvings"], state["best"]
