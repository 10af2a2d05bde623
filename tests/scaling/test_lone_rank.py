import json
from pathlib import Path

import numpy as np
import pytest

from fedmef_dist.scaling.cost_model import CostModel, Work
from fedmef_dist.scaling.launch_site import LaunchSite
from fedmef_dist.scaling.lone_rank import lone_rank_section, measure_lone_rank

ROUND = {"train": 3.0, "reduce": 0.25, "adjust": 0.5, "eval": 0.125, "round": 4.0}
FOUND = {
    "rank": 8, "ranks": 16, "cohort": 32, "clients": 2, "mask_seconds": 0.0, "reduce_bytes": 1000, "peak_bytes": 10**8,
    "rounds": [dict.fromkeys(ROUND, 100.0), ROUND, {name: 2 * ROUND[name] for name in ROUND}, ROUND],
}  # fmt: skip


class Place(LaunchSite):
    """Writes what a rank would; its command ends with the given status."""

    def __init__(self, status=0):
        super().__init__(None)
        object.__setattr__(self, "status", status)
        object.__setattr__(self, "commands", [])

    def run(self, arguments, ranks, log, *, spread=False):
        self.commands.append(arguments)
        log.write_text("last line\n")
        Path(arguments[-1]).write_text(json.dumps(FOUND))
        return self.status


def measured(place, out):
    return measure_lone_rank(place, out / "config.yaml", ["seed=1"], 16, 8, 32, out)


def test_a_rank_in_the_middle_is_played_once(tmp_path):
    place = Place()
    lone = measured(place, tmp_path)
    (command,) = place.commands
    assert command[:4] == ["lone-rank", str(tmp_path / "config.yaml"), "seed=1", "federation.clients_per_round=32"]
    assert command[4:-2] == ["--rounds", "4", "--rank", "8", "--ranks", "16", "--ranks-per-node", "8"]
    assert lone.phases == ROUND  # the median without the round that warms up
    assert measured(place, tmp_path) == lone
    assert len(place.commands) == 1


def test_one_that_fails_ends_the_study(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        measured(Place(2), tmp_path)
    assert left.value.code == 2
    assert "last line" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        measured(Place(2), tmp_path)  # nothing was left that would be taken for a result


def test_the_report_has_it_beside_the_model(tmp_path):
    """32 clients of 10 samples on 16 ranks: 2 x 1.5 s, and drawing 32 x 1 ms; no network, no neighbours."""
    model = CostModel(
        client=0.5, sample=0.1, neighbour=9.0, crowding=9.0, draw=0.001, server=0.5, rest=0.25, evaluate=1.6
    )
    lone = measured(Place(), tmp_path)
    section = lone_rank_section(lone, model, np.full(32, 10.0), Work(8.0, 1.0, 1.0))
    assert "Rank 8 of 16, played for real and alone" in section
    assert "It trains 2 of 32 clients a round" in section
    assert "| drawing, placing, its clients | 3 | 3.032 |" in section
    assert "| server | 0.5 | 0.5 |" in section
    assert "| its share of the test set | 0.125 | 0.1 |" in section
    assert "| the whole round | 4 | 3.882 |" in section
