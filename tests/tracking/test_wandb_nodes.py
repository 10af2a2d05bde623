"""A second node beside rank 0's, with W&B's real client and the stand-in server."""

import time

import pytest
import torch
from wandb_stand_in import serving

from fedmef_dist.cluster.environment import Environment
from fedmef_dist.tracking.settings import WandbSettings
from fedmef_dist.tracking.wandb_nodes import open_node

pytest.importorskip("wandb")


class Ranks:
    """What a rank sees of its group; rank 0 has told the identity "abc"."""

    def __init__(self, rank, local_rank=0, nodes=2):
        self.rank, world = rank, 2 * nodes
        self.environment = Environment("srun", rank, world, local_rank, 2, "127.0.0.1", 1)

    def broadcast(self, tensor):
        tensor[:3] = torch.tensor(list(b"abc"), dtype=torch.uint8)


def test_one_rank_of_each_further_node_sends_its_load_and_nothing_else(tmp_path, monkeypatch, capsys):
    with serving() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        tracker = open_node(WandbSettings(mode="online", system_metrics=True), tmp_path, Ranks(2))
        deadline = time.monotonic() + 100
        while "abc" not in server.runs:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tracker.log({"round": 1, "train/loss": 0.5})
        tracker.close()
        assert [*server.runs] == ["abc"]
        assert server.history("abc") == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [({}, Ranks(2)), ({"system_metrics": True, "mode": "online"}, Ranks(3, local_rank=1)),
     ({"system_metrics": True, "mode": "online"}, Ranks(1, local_rank=1, nodes=1)),
     ({"system_metrics": True}, Ranks(2))],
)  # fmt: skip
def test_no_other_rank_opens_anything(tmp_path, settings, ranks):
    assert open_node(WandbSettings(**settings), tmp_path, ranks) is None
