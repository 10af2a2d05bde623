"""What a run has saved is tested again as the run itself tested it."""

import csv
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.commands.evaluate import evaluate_command
from fedmef_dist.runs.directory import read_configuration, write_configuration
from fedmef_dist.session.evaluation import evaluate_run
from fedmef_dist.session.export import export

SETTINGS = {
    "evaluation": {"every": 1, "per_client": 8},
    "checkpoint": {"every": 2, "keep": 2},
    "federation": {"rounds": 4},
}


@pytest.fixture(scope="module", params=["fedmef", "ditto"])
def finished(request, tmp_path_factory):
    """A run whose clients all were tested; under ditto each has a model of its own."""
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    method = {} if request.param == "fedmef" else {"method": {"name": request.param}}
    fedmef_dist.run(tiny(**SETTINGS, **method), run_dir)
    return fedmef_dist.read_run(run_dir)


@pytest.mark.parametrize("number", [2, 4])
def test_every_number_is_that_of_the_round(finished, number):
    found = evaluate_run(finished.path, number, per_client=True)
    logged = finished.metrics[number - 1]
    assert (found.round, found.digest) == (number, logged["model/digest"])
    tested = {key: value for key, value in logged.items() if key.startswith("eval/")}
    assert found.quality | found.spread == tested


@pytest.mark.parametrize("runtime", [{"backend": "mpi"}, {"backend": "nccl", "device": "cuda"}])
def test_a_run_is_tested_where_its_ranks_could_not_meet(finished, tmp_path, runtime, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elsewhere = tmp_path / "run"
    shutil.copytree(finished.path, elsewhere)
    write_configuration(elsewhere, read_configuration(elsewhere) | {"runtime": runtime})
    assert evaluate_run(elsewhere).digest == finished.summary["model/digest"]


def test_the_newest_one_is_taken_and_clients_have_a_row_each(finished, tmp_path, capsys):
    evaluate_command(finished.path, None, True, tmp_path / "deep" / "clients.csv", False)
    out = capsys.readouterr().out
    assert f"round 4, digest {finished.summary['model/digest'][:16]}" in out
    assert "8 of 8 clients on the samples that they train on: mean " in out
    with (tmp_path / "deep" / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["client"] for row in rows] == [*map(str, range(8))]
    assert sum(int(row["training_samples"]) for row in rows) <= 160
    mean = sum(float(row["accuracy"]) for row in rows) / 8
    assert mean == pytest.approx(finished.metrics[-1]["eval/client_accuracy_mean"])
    assert all(float(row["accuracy"]) == int(row["right"]) / int(row["tested"]) for row in rows)


def test_a_round_that_was_not_kept_is_named_with_those_that_were(finished, tmp_path):
    for ask in (lambda: evaluate_run(finished.path, 3), lambda: export(finished.path, tmp_path / "x", 3)):
        with pytest.raises(UserError, match="no checkpoint of round 3") as caught:
            ask()
        assert "2, 4" in caught.value.mend


def test_an_export_that_cannot_be_written_is_refused(finished, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ("file/x", "missing/x", "folder"):
        with pytest.raises(UserError, match="cannot write the file"):
            export(finished.path, tmp_path / place)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


def test_an_earlier_round_is_exported(finished, tmp_path):
    for number in (2, 4):
        export(finished.path, tmp_path / f"{number}.safetensors", number)
    early, late = (load_file(tmp_path / f"{number}.safetensors") for number in (2, 4))
    assert early.keys() == late.keys()
    assert any(not early[name].equal(late[name]) for name in early)
