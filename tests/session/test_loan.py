"""Objects given to `fedmef_dist.run`."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import yaml
from pydantic import Field
from thread_group import on_ranks
from tiny import tiny
from torch import nn

import fedmef_dist
from fedmef_dist.base import guests
from fedmef_dist.base.errors import UserError
from fedmef_dist.data.from_arrays import image_dataset
from fedmef_dist.methods.fedavg import FedAvg
from fedmef_dist.methods.fedmef import FedMef, FedMefSettings
from fedmef_dist.session.loan import share_weights
from fedmef_dist.tracking.early_stopping import EarlyStopping
from fedmef_dist.tracking.tracker import Tracker

HERE = __name__


class OwnSettings(FedMefSettings):
    share: float = Field(0.5, description="of something")


class Own(FedMef):
    """FedMef under another name."""

    Settings = OwnSettings


class Net(nn.Sequential):
    def __init__(self, *, classes, shape):
        features = [nn.Conv2d(shape[0], 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(*features, nn.Flatten(), nn.Linear(16, classes))


class Kept(Tracker):
    def __init__(self, run_dir=None, config=None):
        self.rounds = []

    def log(self, metrics):
        self.rounds.append(metrics["round"])


def recorded(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


def stripes(owners=None):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    labels = np.arange(60) % 3
    return image_dataset("stripes", (images, labels), (images[:10], labels[:10]), owners=owners)


SHORT = {"rounds": 2, "clients": 3, "clients_per_round": 2}


def test_objects_take_the_places_of_names_and_are_recorded(tmp_path):
    config = tiny(federation=SHORT, data={"partition": {"scheme": "natural"}}, model={"hidden": 4})
    tracker, data = Kept(), stripes(owners=np.arange(60) % 3)
    summary = fedmef_dist.run(
        config,
        tmp_path / "run",
        method=Own,
        model=Net,
        dataset=data,
        trackers=[tracker, Kept],
        callbacks=[EarlyStopping(monitor="round", mode="min", patience=1)],
    )
    tree = recorded(tmp_path / "run")
    assert tree["method"] | {"name": f"{HERE}:Own", "share": 0.5, "density": 0.5} == tree["method"]
    assert (tree["model"]["name"], tree["data"]["dataset"]) == (f"{HERE}:Net", "object:stripes")
    assert tree["tracking"]["trackers"] == [{"name": f"{HERE}:Kept"}, {"name": f"{HERE}:Kept#2"}]
    stopping = {"name": "early_stopping", "monitor": "round", "mode": "min", "patience": 1, "min_delta": 0.0}
    assert tree["callbacks"] == [stopping]
    assert tracker.rounds == [1, 2]
    assert summary.values["stopped"] == "round was not better than 1 in 1 measurements"
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary.values
    assert not guests._LENT


@dataclass
class Telling(Tracker):
    """Would tell somebody far away."""

    channel: str
    token: str = field(repr=False)

    def log(self, metrics):
        """Nothing."""


def test_what_a_dataclass_does_not_show_is_written_nowhere(tmp_path):
    fedmef_dist.run(tiny(), tmp_path / "run", trackers=[Telling("news", "SECRET")])
    (entry,) = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["tracking"]["trackers"]
    assert entry == {"name": f"{HERE}:Telling", "channel": "news"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if b"SECRET" in path.read_bytes()]


def test_a_run_of_objects_goes_on_where_they_are_given_again(tmp_path):
    def play(folder, rounds, **options):
        config = tiny(federation={**SHORT, "rounds": rounds}, checkpoint={"every": 1})
        return fedmef_dist.run(config, folder, method=Own, dataset=stripes(), **options).values["model/digest"]

    whole = play(tmp_path / "whole", 3)
    play(tmp_path / "parts", 1)
    assert play(tmp_path / "parts", 3, resume="must") == whole


def test_a_subclass_that_changes_nothing_has_the_bits_of_its_class(tmp_path):
    config = tiny(federation=SHORT)
    own = fedmef_dist.run(config, tmp_path / "own", method=Own)
    assert own.values["model/digest"] == fedmef_dist.run(config, tmp_path / "plain").values["model/digest"]


def test_a_method_keeps_the_keys_that_it_has(tmp_path, capsys):
    fedmef_dist.run(tiny(federation=SHORT), tmp_path / "run", method=FedAvg)
    assert recorded(tmp_path / "run")["method"] == {"name": "fedavg"}
    assert "note: method fedavg has no density, adjust_every, adjust_until; left out\n" in capsys.readouterr().err


def test_a_module_starts_with_its_own_weights_and_stays_as_it_is(tmp_path):
    torch.manual_seed(1)
    model = Net(classes=4, shape=(1, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = tiny(federation=SHORT, method={"name": "fedavg"})
    digests = {fedmef_dist.run(config, tmp_path / name, model=model).values["model/digest"] for name in ("a", "b")}
    drawn = fedmef_dist.run(config, tmp_path / "c", model=Net).values["model/digest"]
    assert len(digests) == 1
    assert drawn not in digests
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert recorded(tmp_path / "a")["model"]["name"] == f"{HERE}:Net"


def test_of_a_module_the_weights_of_rank_0_count():
    def work(group):
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
        nn.init.constant_(model[0].weight, group.rank + 1.0)
        model[1].num_batches_tracked += group.rank + 5
        shared = share_weights(model, group)
        return shared[0].weight.unique().tolist(), int(shared[1].num_batches_tracked), model[0].weight[0, 0].item()

    assert on_ranks(2, work) == [([1.0], 5, 1.0), ([1.0], 5, 2.0)]
    assert share_weights(Net, None) is Net
    assert share_weights(None, None) is None


def test_what_does_not_fit_what_is_lent_is_refused(tmp_path):
    config = tiny(federation=SHORT, data={"partition": {"scheme": "natural"}})
    with pytest.raises(UserError, match="does not say whose its samples are"):
        fedmef_dist.run(config, tmp_path / "run", dataset=stripes())
    assert not guests._LENT
