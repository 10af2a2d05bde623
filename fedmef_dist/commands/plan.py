"""The command ``plan``: what a run would be like, without training."""

from pathlib import Path

from fedmef_dist.cluster.environment import detect
from fedmef_dist.cluster.group import open_group
from fedmef_dist.config import load_config
from fedmef_dist.data.shapes import Shape
from fedmef_dist.report.partition import describe, save_partition
from fedmef_dist.simulation.footprint import modelled
from fedmef_dist.simulation.forecast import foretell, look_at_partition
from fedmef_dist.simulation.loop import Simulation


def plan_command(path: Path, overrides: list[str], ranks: int, out: Path | None) -> None:
    """Prints who holds what, what a round moves and computes, and how ``ranks`` would share it; draws the partition.

    Raises:
        UserError: the configuration is wrong, or ``out`` cannot be written.
    """
    # One process plans, and talks to none.
    config = load_config(path, ["runtime.device=cpu", *overrides, "runtime.backend=auto"])
    with open_group(detect({}), config.runtime) as group:
        simulation = Simulation(config, group)
        simulation.start(rehearses=True)
        view = look_at_partition(simulation.dataset, simulation.population, config.seed)
        memory = modelled(config, Shape(simulation.dataset.shape, simulation.dataset.classes))
        before = simulation.totals.wire_bytes, simulation.totals.flops
        print(describe(config, simulation.space, view, foretell(simulation, ranks), memory, before))
    if out is not None:
        save_partition(view, out)
