"""One rank of the most that are predicted, played for real without the others, beside what the cost model says."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedmef_dist.base.atomic import write_json
from fedmef_dist.report.units import scaled
from fedmef_dist.scaling.cost_model import CostModel, Work
from fedmef_dist.scaling.launch_site import LaunchSite
from fedmef_dist.scaling.runs import give_up
from fedmef_dist.scaling.text import table

_ROUNDS = 3  # behind one to warm up


@dataclass(frozen=True)
class LoneRank:
    """What one rank of many took.

    Attributes:
        rank, ranks: which, and of how many.
        cohort: clients of a round, on all ranks.
        clients: that it trained in a round.
        outside: seconds of its process outside of first mask and rounds.
        mask_seconds: of the first mask.
        phases: seconds of each part of a round, median over all but the first; ``round`` is the whole.
        reduce_bytes: that it handed to collectives in a round.
        peak_bytes: most memory that its process held.
    """

    rank: int
    ranks: int
    cohort: int
    clients: int
    outside: float
    mask_seconds: float
    phases: dict[str, float]
    reduce_bytes: float
    peak_bytes: int


def measure_lone_rank(
    place: LaunchSite, config: Path, overrides: Sequence[str], ranks: int, ranks_per_node: int, cohort: int, out: Path
) -> LoneRank:
    """Plays a rank in the middle of so many, unless that lies there; raises SystemExit where it fails."""
    rank = ranks // 2
    file = out / f"rank-{rank}-of-{ranks}_cohort-{cohort}.json"
    if not file.is_file():
        print(f"one rank of {ranks}: {cohort} clients a round", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        log, part, start = file.with_suffix(".log"), file.with_suffix(".part"), time.perf_counter()
        who = ["--rank", str(rank), "--ranks", str(ranks), "--ranks-per-node", str(ranks_per_node)]
        settings = [str(config), *overrides, f"federation.clients_per_round={cohort}", "--rounds", str(1 + _ROUNDS)]
        status = place.run(["lone-rank", *settings, *who, "--out", str(part)], 1, log)
        if status:
            give_up(status, file.stem, log)
        write_json(file, {**json.loads(part.read_text(encoding="utf-8")), "seconds": time.perf_counter() - start})
        part.unlink()
    return _read(json.loads(file.read_text(encoding="utf-8")))


def _read(found: dict[str, Any]) -> LoneRank:
    rounds = found["rounds"]
    played = found["mask_seconds"] + sum(each["round"] for each in rounds)
    return LoneRank(
        rank=found["rank"],
        ranks=found["ranks"],
        cohort=found["cohort"],
        clients=found["clients"],
        outside=found["seconds"] - played,
        mask_seconds=found["mask_seconds"],
        phases={name: float(np.median([each[name] for each in rounds[1:]])) for name in rounds[0]},
        reduce_bytes=found["reduce_bytes"],
        peak_bytes=found["peak_bytes"],
    )


def lone_rank_section(lone: LoneRank, model: CostModel, samples: np.ndarray, work: Work) -> str:
    """What it took beside what a model, fitted where it ran, says of a rank with no neighbour and no network.

    ``samples`` are a cohort's, float64 (cohort,).
    """
    modelled = model.parts(samples, model.network(lone.ranks, 1), work)
    parts = (
        ("drawing, placing, its clients", lone.phases["train"], ("drawing", "training")),
        ("its part of the sum", lone.phases["reduce"], ()),
        ("server", lone.phases["adjust"], ("server",)),
        ("its share of the test set", lone.phases["eval"], ("evaluation",)),
        ("the whole round", lone.phases["round"], ("drawing", "training", "server", "evaluation", "rest")),
    )
    rows = [
        (name, f"{seconds:.4g}", f"{sum(modelled[each] for each in names):.4g}" if names else "")
        for name, seconds, names in parts
    ]
    return (
        f"Rank {lone.rank:,} of {lone.ranks:,}, played for real and alone: collectives return at once, as if every "
        f"other rank had given the same, so that this is all of a rank but waiting. It trains {lone.clients:,} of "
        f"{lone.cohort:,} clients a round. Start and end take {lone.outside:.1f} s, the first mask "
        f"{lone.mask_seconds:.2f} s; its process holds at most {scaled(lone.peak_bytes, 'B')} and hands "
        f"{scaled(lone.reduce_bytes, 'B')} a round to collectives. Medians of {_ROUNDS} rounds behind a first one:\n\n"
        + table(("A round", "Measured (s)", "Modelled (s)"), rows)
    )
