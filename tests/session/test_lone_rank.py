import json
import logging

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.session.lone_rank import PHASES, play_lone_rank

CONFIG = """
name: small
data: {dataset: synthetic, synthetic: {samples: 400, test_samples: 50, channels: 1, image_size: 8}}
model: {name: cnn, width: 0.25, hidden: 0}
federation: {clients: 40, clients_per_round: 40, rounds: 9, local_epochs: 1}
method: {name: fedmef, density: 0.5, adjust_every: 1, adjust_until: 9}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_a_rank_of_many_plays_its_part_of_every_round(config, tmp_path):
    """40 clients on 16 ranks: 2 or 3 each; ranks that hold equal masks, and a mask that changes."""
    out = tmp_path / "rank.json"
    play_lone_rank(config, ["data.partition.scheme=iid"], 5, 16, 8, 2, out)
    assert logging.getLogger("fedmef_dist").isEnabledFor(logging.WARNING)
    found = json.loads(out.read_text())
    assert (found["rank"], found["ranks"], found["cohort"]) == (5, 16, 40)
    assert found["clients"] in (2, 3)
    assert [set(each) for each in found["rounds"]] == [{*PHASES}] * 2
    assert all(0 < each["train"] < each["round"] for each in found["rounds"])
    assert found["reduce_bytes"] > 8 * 40
    assert found["peak_bytes"] > 10**7


def test_an_impossible_rank_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="impossible rank: rank 16 of 16"):
        play_lone_rank(config, [], 16, 16, 8, 1, tmp_path / "rank.json")
    assert not (tmp_path / "rank.json").exists()
