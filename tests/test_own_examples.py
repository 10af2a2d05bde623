"""The examples of one's own code, each in a folder outside of the package, as a new user has them."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import fedmef_dist
from fedmef_dist.cli import main
from fedmef_dist.session.sweep import load_sweep

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


@pytest.fixture
def folder(outside):
    """`folder("own_method")` copies an example to the working directory."""

    def copy(*names):
        for name in names:
            for path in EXAMPLES.glob(f"{name}.*"):
                shutil.copy(path, outside)
        return outside

    return copy


@pytest.fixture
def command(monkeypatch):
    """`command("plan", "own_method.yaml")` gives the exit status."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["fedmef-dist", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0

    return run


def play(name, folder, *overrides, run_dir="run", **options):
    config = fedmef_dist.load_config(f"{name}.yaml", overrides)
    return fedmef_dist.run(config, folder / run_dir, **options).values


def test_each_example_has_a_configuration():
    others = {"early_stop", "sparse_evolution", "mlflow_tracker"}
    assert {"own_method", "own_model", "own_data", "own_tracker", *others} == {*NAMES}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES}


def test_every_snippet_of_the_documentation_stands_in_an_example():
    text = (ROOT / "docs" / "extending.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    sources = [path.read_text() for path in EXAMPLES.glob("*.py")]
    assert len(snippets) == 5
    for snippet in snippets:
        assert any(snippet in source for source in sources), snippet


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("early_stop", "mlflow_tracker")])
def test_an_example_runs_and_is_recorded_by_its_name(name, folder):
    here = folder(name)
    assert play(name, here, "federation.rounds=2")["rounds"] == 2
    own = yaml.safe_load((here / f"{name}.yaml").read_text())
    recorded = yaml.safe_load((here / "run" / "config.yaml").read_text())
    for section, key in (("method", "name"), ("model", "name"), ("tracking", "trackers")):
        if key in own.get(section, {}):
            assert recorded[section][key] == own[section][key]


def test_the_method_changes_what_grows_and_has_fedmefs_preferences(folder):
    here = folder("own_method")
    rounds = "federation.rounds=3"
    half = play("own_method", here, rounds)
    none = play("own_method", here, rounds, "method.random_share=0.0", run_dir="none")
    plain = play("own_method", here, rounds, "method.name=fedmef", run_dir="plain")
    assert half["model/digest"] != none["model/digest"] == plain["model/digest"]
    assert half["wire/total_bytes"] == plain["wire/total_bytes"]
    assert half["memory/activation_bytes"] == plain["memory/activation_bytes"]  # pruned activations, NSConv


def test_the_data_set_has_clients_of_its_own(folder):
    folder("own_data")
    config = fedmef_dist.load_config("own_data.yaml")
    from fedmef_dist.data.sources import load_dataset

    dataset = load_dataset(config.data, 0)
    assert dataset.owners.bincount().tolist() == [16] * 8
    assert dataset.shape == (1, 8, 8)


def test_the_tracker_writes_its_file(folder):
    here = folder("own_tracker")
    play("own_tracker", here, "federation.rounds=4")
    head, *lines = csv.reader((here / "run" / "accuracy.csv").read_text().splitlines())
    assert head == ["round", "fedavg"]
    assert [line[0] for line in lines] == ["2", "4"]


def test_the_tracker_for_mlflow_goes_on_with_its_run(folder, monkeypatch):
    """On a stand-in for MLflow's client: every number of every round, under one run, also after a resume."""
    said = []

    class Client:
        def __init__(self, uri):
            assert uri is None

        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id="7") if said else None

        def create_run(self, experiment, run_name):
            said.append(("run", run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run-{experiment}"))

        def create_experiment(self, name):
            return "7"

        def __getattr__(self, method):
            return lambda *arguments, **options: said.append((method, *arguments, *options.values()))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=Client))
    here = folder("mlflow_tracker")
    play("mlflow_tracker", here, "federation.rounds=2")
    play("mlflow_tracker", here, "federation.rounds=3")
    lines = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        (key, value, line["round"]) for line in lines for key, value in line.items()
        if isinstance(value, int | float) and key != "round"
    }  # fmt: skip
    assert {tuple(call[2:]) for call in said if call[0] == "log_metric"} == numbers
    assert [call for call in said if call[0] == "run"] == [("run", "run")]
    assert ("log_param", "run-7", "method.name", "fedavg") in said
    assert [call[:2] for call in said].count(("set_terminated", "run-7")) == 2


def test_the_callback_stops_the_run(folder):
    here = folder("early_stop")
    values = play("early_stop", here)
    assert values["stopped"].startswith("the test loss stays at ")
    assert values["rounds"] < 30
    again = play("early_stop", here)
    assert (again["rounds"], again["model/digest"]) == (values["rounds"], values["model/digest"])


def test_every_command_works_with_a_method_of_ones_own(folder, command, capsys):
    here = folder("own_method")
    assert command("plan", "own_method.yaml", "federation.rounds=2", "--ranks", 2) == 0
    assert "own_method:RandomGrowth" in capsys.readouterr().out
    assert command("memory", "own_method.yaml", "--steps", 1, "--json") == 0
    assert json.loads(capsys.readouterr().out)[-1]["method"] == "own_method:RandomGrowth"
    assert command("schema", "--method", "own_method:RandomGrowth") == 0
    assert "random_share" in capsys.readouterr().out
    assert command("submit", "own_method.yaml", "--dry-run") == 0
    (here / "grid.yaml").write_text(
        "config: own_method.yaml\nruns: runs\ngrid: {method.random_share: [0.0, 1.0], federation.rounds: [2]}\n"
    )
    assert command("sweep", "grid.yaml", "--list") == 0
    for cell in load_sweep(here / "grid.yaml").cells:
        play("own_method", here, *cell.overrides, run_dir=cell.run_dir)
    capsys.readouterr()
    runs = sorted((here / "runs").iterdir())
    assert command("compare", *runs, "--out", "out") == 0
    assert "random_share 0" in capsys.readouterr().out
    assert command("export", runs[0], "--out", "model.safetensors") == 2
    assert "--allow-plugins" in capsys.readouterr().err
    assert command("export", runs[0], "--out", "model.safetensors", "--allow-plugins") == 0


def test_a_module_that_fails_ends_a_command_with_three_lines(folder, command, capsys):
    (folder("own_method") / "bad.py").write_text("\nimport a_package_that_nobody_has\n")
    assert command("plan", "own_method.yaml", "method.name=bad:X") == 2
    what, where, mend = capsys.readouterr().err.splitlines()
    assert what == "bad cannot be imported: ModuleNotFoundError: No module named 'a_package_that_nobody_has'"
    assert where == f"where: {Path('bad.py').resolve()}, line 2 (method.name=bad:X)"
    assert mend == "mend: correct the module"


def test_compare_imports_nothing_that_a_run_names(folder, command):
    here = folder("own_method")
    play("own_method", here, "federation.rounds=2")
    (here / "own_method.py").write_text("raise SystemExit('imported')\n")
    del sys.modules["own_method"]
    assert command("compare", here / "run", "--out", "out") == 0
    assert "own_method" not in sys.modules


@pytest.mark.cluster
def test_ranks_find_the_method_and_a_resumed_run_on_two_ends_with_the_same_bits(folder, launch):
    here = folder("own_method")
    whole = play("own_method", here, "federation.rounds=4")
    play("own_method", here, "federation.rounds=2", run_dir="parts")
    arguments = ["-m", "fedmef_dist", "run", "own_method.yaml", "federation.rounds=4", "--run-dir", "parts"]
    ended = launch("torchrun", 2, *arguments, "--resume", "must", cwd=here, timeout=150)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads((here / "parts" / "summary.json").read_text())
    assert (summary["world_size"], summary["model/digest"]) == (2, whole["model/digest"])


@pytest.mark.timeout(600)
def test_the_examples_are_typed(tmp_path):
    """As in a user's own project: what is told of the package's own files does not count."""
    command = ["mypy", "--strict", "--follow-imports=silent", f"--cache-dir={ROOT / '.mypy_cache' / 'examples'}"]
    ended = subprocess.run(
        [sys.executable, "-m", *command, *sorted(map(str, EXAMPLES.glob("*.py")))],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
