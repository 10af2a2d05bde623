"""A run so small that one of its rounds takes some hundredths of a second."""

from pathlib import Path

import torch

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.cluster.group import Group
from fedmef_dist.config import parse_config, to_tree
from fedmef_dist.runs import snapshot
from fedmef_dist.runs.checkpoint import CheckpointStore
from fedmef_dist.simulation.loop import Simulation
from fedmef_dist.tracking.callbacks import Callbacks

TREE = {
    "name": "tiny",
    "data": {
        "dataset": "synthetic",
        "augment": False,
        "synthetic": {"samples": 160, "test_samples": 50, "classes": 4, "channels": 1, "image_size": 8},
    },
    "model": {"name": "cnn", "width": 0.125, "hidden": 8},
    "federation": {"clients": 8, "clients_per_round": 3, "rounds": 6, "local_epochs": 1, "batch_size": 16},
    "optimizer": {"lr": 0.1},
    "method": {"name": "fedmef", "density": 0.5, "adjust_every": 2, "adjust_until": 6},
    "tracking": {"console": False, "wandb": {"mode": "disabled"}},
}


def tiny(**changes):
    """`tiny(seed=1, federation={"rounds": 2})` is the configuration with these keys changed.

    Another method takes none of the keys of the one here.
    """
    sections = {
        key: {**TREE.get(key, {}), **value} if isinstance(value, dict) and "name" not in value else value
        for key, value in changes.items()
    }
    return parse_config({**TREE, **sections}, "here")


def alone():
    """A group of one rank."""
    return Group(Environment("single", 0, 1, 0, 1, None, None), torch.device("cpu"), "gloo")


class Recorder:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.rounds = []

    def log(self, metrics):
        self.rounds.append(dict(metrics))

    def saved(self, folder):
        pass

    def state(self):
        return {}


class Run(Simulation):
    """A simulation with a run directory: what a session makes of the two."""

    def __init__(self, config, group, run_dir=None, interruption=None):
        callbacks = Callbacks(config.callbacks, group, run_dir or Path("run"), to_tree(config))
        super().__init__(config, group, interruption, callbacks=callbacks)
        self.store = None
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.store = CheckpointStore(run_dir, config.checkpoint.keep)

    def run(self, tracker):
        super().run(tracker.log, lambda: self.save(tracker))

    def save(self, tracker):
        self.store.kept_round = self.callbacks.kept_round
        checkpoint = snapshot.take(self.round, self.parts, tracker.state())
        if self.group.rank == 0 and self.round > self.store.last:
            return self.store.try_save(checkpoint)
        return False

    @property
    def kept(self):
        return self.local.kept


def restore(simulation, checkpoint):
    """The simulation goes on behind the checkpoint's round."""
    snapshot.restore(checkpoint, simulation.parts)
    simulation.round = checkpoint.state["round"]


def started(*arguments):
    """A run with its first mask."""
    simulation = Run(*arguments)
    simulation.start()
    return simulation
