import json
from pathlib import Path

import pytest
from run_dirs import configured

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import load_config, to_tree
from fedmef_dist.scaling import launch_site as module
from fedmef_dist.scaling.launch_site import LaunchSite
from fedmef_dist.scaling.points import Point
from fedmef_dist.scaling.runs import measure

POINT = Point(2, 30, 3)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("method: {name: fedavg}\n")
    return path


@pytest.fixture
def started(monkeypatch):
    """Collects the commands in place of starting them; they end with the status at the list's front."""
    calls, statuses = [], []

    def wait_for(commands, output, handed_on_as=None):
        calls.extend(command for command, _ in commands)
        output.write(b"first line\nlast line\n")
        if "--run-dir" in calls[-1]:
            Path(calls[-1][-1]).mkdir(parents=True)
        return statuses.pop(0) if statuses else 0

    monkeypatch.setattr(module, "wait_for", wait_for)
    monkeypatch.setattr(module, "run_ranks", lambda arguments, ranks, output: wait_for([(arguments, None)], output))
    return calls, statuses


def test_a_run_is_started_once_and_its_time_kept(config, started, tmp_path):
    arguments = (LaunchSite(None), config, ["seed=1"], POINT, 4)
    run_dir = measure(*arguments, 0, tmp_path)
    assert run_dir == tmp_path / "points" / "ranks-2_clients-30_cohort-3_0"
    (command,) = started[0]
    assert command[:3] == ["run", str(config), "seed=1"]
    assert command[-2:] == ["--run-dir", str(run_dir)]
    assert "federation.rounds=5" in command
    assert 0 <= json.loads((run_dir / "process.json").read_text())["seconds"] < 10


def finish(run_dir, config, overrides):
    configured(run_dir, to_tree(load_config(config, [*overrides, *POINT.overrides(4)])))
    (run_dir / "process.json").write_text(json.dumps({"seconds": 1.0}))


def test_a_finished_run_is_not_started_again(config, started, tmp_path):
    finish(tmp_path / "points" / f"{POINT.name}_0", config, ["seed=1"])
    measure(LaunchSite(None), config, ["seed=1"], POINT, 4, 0, tmp_path)
    assert started[0] == []


def test_another_studys_run_is_refused(config, started, tmp_path):
    finish(tmp_path / "points" / f"{POINT.name}_0", config, ["seed=1"])
    with pytest.raises(UserError, match="holds another study; different: seed\nwhere: "):
        measure(LaunchSite(None), config, ["seed=2"], POINT, 4, 0, tmp_path)


def test_half_a_run_is_started_anew(config, started, tmp_path):
    run_dir = tmp_path / "points" / f"{POINT.name}_0"
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("half")
    measure(LaunchSite(None), config, [], POINT, 4, 0, tmp_path)
    assert len(started[0]) == 1
    assert not (run_dir / "metrics.jsonl").exists()


@pytest.mark.parametrize(("status", "expected"), [(2, 2), (1, 1), (137, 1), (75, 75), (130, 130)])
def test_a_run_that_fails_ends_the_study_with_its_last_lines(config, started, tmp_path, capsys, status, expected):
    started[1].append(status)
    with pytest.raises(SystemExit) as left:
        measure(LaunchSite(None), config, [], POINT, 4, 0, tmp_path)
    assert left.value.code == expected
    assert ("last line" in capsys.readouterr().err) == (status not in (75, 130))
