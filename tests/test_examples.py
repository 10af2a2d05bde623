"""Every file in configs/ loads, and runs where its data can be had or written in the original format."""

from pathlib import Path

import data_files
import pytest
from tiny import alone

import fedmef_dist
from fedmef_dist.commands.plan import plan_command
from fedmef_dist.data.sources import own_datasets
from fedmef_dist.session.sweep import load_sweep
from fedmef_dist.simulation.loop import Simulation

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
GRIDS = sorted((Path(__file__).parent.parent / "configs" / "sweeps").glob("*.yaml"))
# As little as keeps the file's data set, partition, behaviour of clients and method.
SMALL = [
    "federation.rounds=2",
    "federation.clients=3",
    "federation.clients_per_round=2",
    "federation.local_epochs=1",
    "federation.batch_size=16",
    "data.partition.min_samples=1",
    "evaluation.every=1",
    "runtime.device=cpu",
    "tracking={console: false, wandb: {mode: disabled}}",
]


def files(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@files(FILES)
def test_a_configuration_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    dataset = fedmef_dist.load_config(path).data.dataset
    if dataset in data_files.WRITE:
        data_files.WRITE[dataset](tmp_path / "data")
    model = "{name: gpt, gpt: {depth: 2, width: 32, heads: 2}}" if dataset in data_files.TEXT else "{name: resnet8}"
    changes = [*SMALL, f"model={model}", "data.text.context=8", f"data.root={tmp_path / 'data'}"]
    config = fedmef_dist.load_config(path, changes)
    summary = fedmef_dist.run(config, tmp_path / "run").values
    assert summary["rounds"] == 2
    assert 0 <= summary["eval/accuracy_last"] <= 1


# Planning builds the model: one file for each.
MODELS = {fedmef_dist.load_config(path).model.name: path for path in FILES}


@pytest.mark.parametrize("path", MODELS.values(), ids=lambda path: path.stem)
def test_a_configuration_with_its_own_model_can_be_planned(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = fedmef_dist.load_config(path)
    overrides = [f"data.root={tmp_path / 'data'}", "data.partition.min_samples=1", "federation.rounds=2"]
    if config.data.dataset in data_files.WRITE:
        data_files.WRITE[config.data.dataset](tmp_path / "data")
        if config.data.partition.scheme != "lazy_dirichlet":
            overrides += ["federation.clients=3", "federation.clients_per_round=2"]
    plan_command(path, overrides, 2, None)
    assert f"run                 {config.name}: {config.method.name}, {config.model.name}," in capsys.readouterr().out


def test_every_data_set_has_a_configuration():
    known = set(own_datasets()) - {"synthetic"}
    assert {fedmef_dist.load_config(path).data.dataset for path in FILES} == known


@files(GRIDS)
def test_every_cell_of_a_grid_has_a_configuration(path):
    sweep = load_sweep(path)
    assert sweep.config.path.resolve() in [file.resolve() for file in FILES]
    assert [sweep.state(cell)[1] > 0 for cell in sweep.cells] == [True] * len(sweep.cells)


@files([path for path in GRIDS if path.name.startswith("digits")])
def test_cells_of_a_grid_can_begin(path):
    """The first of each kind: what clients keep, say, is found to be there only when a run begins."""
    sweep = load_sweep(path)
    kinds = {tuple(sorted(key.partition("=")[0] for key in cell.overrides)): cell for cell in reversed(sweep.cells)}
    for cell in kinds.values():
        Simulation(sweep.config.with_overrides(cell.overrides)[0], alone()).start(rehearses=True)
