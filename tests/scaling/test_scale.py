import json
import signal
from pathlib import Path

import pytest

from fedmef_dist.base.errors import UserError
from fedmef_dist.scaling import scale as module
from fedmef_dist.scaling.scale import Outlook, scale

CLUSTER = Path(__file__).parents[2] / "configs" / "clusters" / "ethernet_cpu.yaml"
CONFIG = """
name: small
data: {dataset: synthetic, synthetic: {samples: 400, test_samples: 50, channels: 1, image_size: 8}}
model: {name: cnn, width: 0.25, hidden: 0}
federation: {clients: 20, clients_per_round: 2, rounds: 9, local_epochs: 1}
method: {name: fedavg}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.mark.cluster
def test_a_study_measures_fits_and_predicts_and_a_second_one_finds_it_done(config, tmp_path, capsys):
    out = tmp_path / "out"
    scale(config, ["seed=1"], "2", "", 1, 2, out, Outlook())
    shown = capsys.readouterr().out
    assert "## Strong scaling: 2 clients a round" in shown
    assert {path.name for path in out.iterdir()} == {
        "points", "network", "scaling.md", "scaling.csv", "cost_model.json", "timeline.json",
        "speedup.png", "efficiency.png", "phases.png",
        "predicted_speedup.png", "predicted_parts.png", "predicted_cohorts.png",
    }  # fmt: skip
    events = json.loads((out / "timeline.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1}
    assert sum(event["name"].startswith("client ") for event in events) == 6  # 3 rounds of a cohort of 2
    (process,) = out.glob("points/*/process.json")
    started, csv = process.stat().st_mtime_ns, (out / "scaling.csv").read_text()
    scale(config, ["seed=1"], "2", "", 1, 2, out, Outlook())
    assert process.stat().st_mtime_ns == started
    assert (out / "scaling.csv").read_text() == csv


def test_a_signal_that_comes_as_a_run_ends_stops_the_study_behind_it(config, tmp_path, monkeypatch):
    started = []

    def measure(place, config, overrides, point, *rest):
        started.append(point.ranks)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "measure_network", lambda *arguments: [])
    monkeypatch.setattr(module, "read_measurement", lambda *arguments: None)
    with pytest.raises(SystemExit) as left:
        scale(config, [], "1,2", "", 1, 1, tmp_path / "out", Outlook())
    assert left.value.code == 75
    assert started == [1]


@pytest.mark.parametrize(
    ("ranks", "clients", "message"),
    [
        ("", "", "no number of ranks"),
        ("a", "", "--ranks"),
        ("1", "x", "--clients"),
        ("1,11", "", "needs 22 clients"),
        ("1025", "", "one machine starts 1,024 ranks at the most, not 1,025"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(config, tmp_path, ranks, clients, message):
    with pytest.raises(UserError, match=message):
        scale(config, [], ranks, clients, 1, 1, tmp_path / "out", Outlook())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [{"cluster": CLUSTER}, {"simulates": True}])
def test_a_cluster_needs_ranks_that_show_what_a_sum_moves(config, tmp_path, monkeypatch, asked):
    monkeypatch.setattr(module, "find_simulator", lambda: "smpirun")
    with pytest.raises(UserError, match=r"bytes of a round's sum would not be known\nwhere: --ranks\nmend: .* 1,2"):
        scale(config, [], "1", "", 1, 1, tmp_path / "out", Outlook("64", **asked))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_would_be_removed_is_refused_before_anything_runs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_simulator", lambda: "smpirun")
    own = tmp_path / "simulation" / "mine.py"
    own.parent.mkdir()
    own.write_text("")
    with pytest.raises(UserError, match=r"a folder of that name is there already.*\nwhere: .*/simulation\n"):
        scale(config, [], "1,2", "", 1, 1, tmp_path, Outlook(simulates=True))
    assert own.exists()
    assert not (tmp_path / "points").exists()


def test_more_ranks_than_any_cluster_has_are_not_predicted(config, tmp_path):
    with pytest.raises(UserError, match=r"no more than 1,048,576 ranks are predicted, not 99,999,999,999"):
        scale(config, [], "1", "", 1, 1, tmp_path / "out", Outlook("99999999999"))
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(config, tmp_path):
    with pytest.raises(UserError, match="the study cannot be written: Not a directory"):
        scale(config, [], "1", "", 1, 1, config / "out", Outlook())


@pytest.mark.parametrize("name", ["points", "network"])
def test_a_file_in_the_way_of_a_folder_is_refused_before_anything_runs(config, tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "measure_network", lambda *arguments: pytest.fail("started"))
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="the study cannot be written: File exists"):
        scale(config, [], "1", "", 1, 1, tmp_path, Outlook())


def test_a_wrong_configuration_is_refused_before_anything_runs(config, tmp_path):
    with pytest.raises(UserError, match="unknown key"):
        scale(config, ["sed=1"], "1", "", 1, 1, tmp_path / "out", Outlook())
    assert not (tmp_path / "out").exists()


def test_a_simulator_that_is_not_there_is_said_before_anything_runs(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="SimGrid is not installed"):
        scale(config, [], "1", "", 1, 1, tmp_path / "out", Outlook(simulates=True))
    assert not (tmp_path / "out").exists()
