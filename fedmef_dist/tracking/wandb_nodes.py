"""The load of the other nodes' machines, which W&B takes in its shared mode beside what rank 0 sends."""

import os
import threading
from pathlib import Path

import torch

from fedmef_dist.base.notices import tell
from fedmef_dist.cluster.environment import nodes_of
from fedmef_dist.cluster.group import Group
from fedmef_dist.tracking.settings import WandbSettings
from fedmef_dist.tracking.tracker import Metrics, Tracker
from fedmef_dist.tracking.wandb import first_line
from fedmef_dist.tracking.wandb_run import CONNECT_SECONDS, FINISH_SECONDS, WandbNode, run_id


def open_node(settings: WandbSettings, run_dir: Path, group: Group) -> Tracker | None:
    """What sends the system metrics of this rank's node; None where it is rank 0's, or nobody asked for them.

    Every rank must call it: rank 0 tells the others the run's identity, where they need it.
    """
    place = group.environment
    if not (settings.system_metrics and settings.mode == "online" and nodes_of(place) > 1):
        return None
    buffer = torch.zeros(64, dtype=torch.uint8)
    if group.rank == 0:
        text = run_id(run_dir, os.environ).encode()[:64]
        buffer[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    group.broadcast(buffer)
    if group.rank == 0 or place.local_rank:
        return None
    return NodeTracker(settings, run_dir, buffer.numpy().tobytes().rstrip(b"\0").decode(), nodes_of(place))


class NodeTracker(Tracker):
    """Sends the system metrics of another node than rank 0's; a failure is said once and ends only that."""

    def __init__(self, settings: WandbSettings, run_dir: Path, run_id: str, nodes: int) -> None:
        self._over = threading.Event()
        self._arguments = settings, run_dir, run_id, nodes
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, metrics: Metrics) -> None:
        """Rounds are rank 0's."""

    def close(self) -> None:
        """Send what is left."""
        self._over.set()
        self._thread.join(CONNECT_SECONDS + 1.5 * FINISH_SECONDS)

    def _work(self) -> None:
        run = None
        try:
            run = WandbNode(*self._arguments)
            self._over.wait()
            run.finish()
        except Exception as error:
            tell(f"W&B has no system metrics of this node: {first_line(error)}; the run goes on")
        finally:
            if run is not None:
                run.release()
