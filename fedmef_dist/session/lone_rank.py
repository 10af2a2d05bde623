"""One rank of a run on thousands, for real and alone: its first mask, memory and rounds."""

import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmef_dist.base.atomic import write_json
from fedmef_dist.cluster.lone_rank import open_lone_group
from fedmef_dist.config import load_config
from fedmef_dist.simulation.loop import Simulation

PHASES = ("train", "reduce", "adjust", "eval", "round")
_KIBIBYTE = 1024


def play_lone_rank(
    path: Path, overrides: Sequence[str], rank: int, ranks: int, ranks_per_node: int, rounds: int, out: Path
) -> None:
    """Plays a few rounds as ``rank`` of ``ranks`` and writes what they took, in seconds and bytes, to ``out``.

    Collectives return at once, as if every other rank had given the same, so the values of the model mean nothing.
    Raises UserError where the configuration or the rank does not fit.
    """
    config = load_config(path, overrides)
    with _without_warnings(), open_lone_group(rank, ranks, ranks_per_node, config.runtime) as group:
        simulation = Simulation(config, group)
        start = time.perf_counter()
        simulation.start()
        found: dict[str, Any] = {"rank": rank, "ranks": ranks, "cohort": config.federation.clients_per_round}
        found |= {"mask_seconds": time.perf_counter() - start, "rounds": []}
        times = simulation.local.times
        untaught = times.state()
        for simulation.round in range(1, rounds + 1):
            metrics = simulation.play_round()
            assert metrics is not None
            found["rounds"].append({name: metrics.get(f"time/{name}", 0.0) for name in PHASES})
            found["clients"] = sum(int(metrics[f"clients/{name}"]) for name in ("trained", "refused")) // ranks
            found["reduce_bytes"] = metrics["cluster/reduce_bytes"]
            # The seconds of the others are not there to learn from.
            times.restore(untaught)
            times.slowness = None
    write_json(out, found | {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIBIBYTE})


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What happens to values that nobody trained is of no interest; whoever called hears of theirs again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
