"""Weights that a run starts from, wherever they lie."""

import hashlib

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import alone, tiny

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.models.registry import ModelSettings, stock_model
from fedmef_dist.session import start_weights
from fedmef_dist.session.export import export
from fedmef_dist.session.start_weights import take_weights
from fedmef_dist.simulation.loop import Simulation


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    fedmef_dist.run(tiny(federation={"rounds": 2}), run_dir)
    export(run_dir, run_dir / "model.safetensors")
    return run_dir


def taken(start_from, **changes):
    model = {"start_from": str(start_from), **changes.pop("model", {})}
    simulation = Simulation(tiny(model=model, **changes), alone())
    take_weights(simulation)
    return simulation


def test_a_run_and_its_exported_file_give_the_same_weights(finished, capsys):
    values = taken(finished).server.values
    assert "10 of 10 tensors, 100.0% of the values" in capsys.readouterr().err
    assert taken(finished / "model.safetensors", seed=5).server.values.equal(values)
    weights = load_file(finished / "model.safetensors")
    simulation = taken(finished)
    assert all(tensor.equal(weights[name]) for name, tensor in simulation.model.state_dict().items())


def test_a_run_begins_with_them(tmp_path):
    dense = {"method": {"name": "fedavg"}, "federation": {"rounds": 2}}
    fedmef_dist.run(tiny(**dense), tmp_path / "run")
    simulation = taken(tmp_path / "run", **dense)
    simulation.start()
    assert simulation.test()[1] == fedmef_dist.read_run(tmp_path / "run").summary["eval/accuracy_last"]


@pytest.mark.parametrize("first", ["fedavg", "sparsyfed"])
@pytest.mark.parametrize("second", ["fedavg", "sparsyfed"])
@pytest.mark.parametrize("source", ["run", "file.safetensors"])
def test_weights_that_act_as_powers_act_alike_before_and_after(tmp_path, first, second, source):
    same = {"model": {"norm": "none"}, "federation": {"rounds": 4}}
    fedmef_dist.run(tiny(**same, method={"name": first}), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "file.safetensors")
    assert (tmp_path / "file.torchvision.safetensors").exists()
    loss = taken(tmp_path / source, **same, method={"name": second}).test()[0]
    assert loss == pytest.approx(fedmef_dist.read_run(tmp_path / "run").metrics[-1]["eval/loss"], rel=1e-5)


def test_what_does_not_fit_keeps_what_the_seed_drew(finished, capsys):
    data = {"synthetic": {"samples": 160, "test_samples": 50, "classes": 5, "channels": 1, "image_size": 8}}
    simulation = taken(finished, data=data)
    told = capsys.readouterr().err
    assert "8 of 10 tensors" in told
    assert "drawn from the seed: " in told
    fresh = Simulation(tiny(data=data), alone()).model.state_dict()
    weights = load_file(finished / "model.safetensors")
    for name, tensor in simulation.model.state_dict().items():
        assert tensor.equal(weights[name] if weights[name].shape == tensor.shape else fresh[name])


def test_wrong_ones_are_refused(finished, tmp_path):
    save_file({"other": torch.ones(3)}, tmp_path / "other.safetensors")
    weights = load_file(finished / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, tmp_path / "nan.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "model.pth").write_bytes(b"a pickle")
    (tmp_path / "empty").mkdir()
    for wrong, what in {
        "other.safetensors": "no tensor there has the name and the shape",
        "nan.safetensors": f"{name} is not finite there",
        "broken.safetensors": "the weights cannot be read",
        "missing.safetensors": "the weights cannot be read: No such file",
        "model.pth": "neither a run directory nor a safetensors file",
        "nothing": "there is no such run or file",
        300 * "a": "there is no such run or file",
        "empty": "not a run directory",
    }.items():
        with pytest.raises(UserError, match=what):
            taken(tmp_path / wrong)


def test_foreign_code_of_the_other_run_is_not_imported(outside):
    (outside / "nasty.py").write_text("raise SystemExit('imported')\n")
    other = outside / "other"
    other.mkdir()
    (other / "config.yaml").write_text(yaml.safe_dump({"model": {"name": "nasty:N"}}))
    with pytest.raises(UserError, match=r"names code from outside of the package: model\.name=nasty:N"):
        taken(other)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Weights of a small torchvision network as torch.hub keeps them."""
    settings = ModelSettings(name="shufflenet_v2_x0_5", stem="imagenet")
    model = stock_model(settings, classes=1000, shape=(3, 32, 32), seed=7)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoints" / "new.pth")
    digest = hashlib.sha256((tmp_path / "checkpoints" / "new.pth").read_bytes()).hexdigest()
    path = (tmp_path / "checkpoints" / "new.pth").rename(tmp_path / "checkpoints" / f"tiny-{digest[:8]}.pth")
    monkeypatch.setattr(start_weights, "_published", lambda *_: f"https://somewhere/{path.name}")
    return path, model.state_dict()


def test_torchvisions_weights_are_taken_where_they_lie(published, capsys):
    path, weights = published
    model = {"name": "shufflenet_v2_x0_5", "stem": "imagenet", "norm": "batch", "width": 1.0}
    data = {"synthetic": {"samples": 160, "test_samples": 50, "classes": 4, "channels": 3, "image_size": 32}}
    state = taken("torchvision", model=model, data=data).model.state_dict()
    assert "drawn from the seed: fc.weight, fc.bias\n" in capsys.readouterr().err
    assert state["conv1.0.weight"].equal(weights["conv1.0.weight"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not what torchvision has published"):
        taken("torchvision", model=model, data=data)
    path.unlink()
    with pytest.raises(UserError, match="torchvision's weights are not here") as caught:
        taken("torchvision:IMAGENET1K_V1", model=model, data=data)
    assert "curl -Lo" in caught.value.mend


def test_only_published_weights_have_a_name():
    for name, weights, what in (
        ("cnn", "", "torchvision has no cnn"),
        ("resnet18", "V9", "resnet18 has no weights 'V9'"),
    ):
        with pytest.raises(UserError, match=what):
            start_weights._published(name, weights, "model.start_from")
    assert start_weights._published("resnet18", "IMAGENET1K_V1", "").endswith("/resnet18-f37072fd.pth")
