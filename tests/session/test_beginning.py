"""A run that is forked from another one goes on from its state, its metrics and nothing else of it."""

import pytest
from tiny import tiny

import fedmef_dist
from fedmef_dist.base.errors import UserError
from fedmef_dist.runs.verify import verify


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "parent"
    config = tiny(federation={"rounds": 4}, checkpoint={"every": 2}, server_optimizer={"name": "avgm"})
    fedmef_dist.run(config, run_dir)
    return run_dir


def forked(parent, **changes):
    federation = {"rounds": 6, **changes.pop("federation", {})}
    return tiny(fork=str(parent), federation=federation, server_optimizer={"name": "avgm"}, **changes)


def test_a_fork_with_the_same_settings_is_the_longer_run(parent, tmp_path):
    fork = fedmef_dist.run(forked(parent), tmp_path / "fork")
    whole = fedmef_dist.run(tiny(federation={"rounds": 6}, server_optimizer={"name": "avgm"}), tmp_path / "whole")
    assert fork.values["model/digest"] == whole.values["model/digest"]
    assert fork.values["wire/total_bytes"] == whole.values["wire/total_bytes"]


def test_its_directory_is_whole_and_has_the_metrics_of_both(parent, tmp_path):
    fedmef_dist.run(forked(parent, optimizer={"lr": 0.01}), tmp_path / "fork")
    verify(tmp_path / "fork")
    first = (parent / "metrics.jsonl").read_bytes()
    assert (tmp_path / "fork" / "metrics.jsonl").read_bytes().startswith(first)
    metrics = fedmef_dist.read_run(tmp_path / "fork").metrics
    assert [line["round"] for line in metrics] == [1, 2, 3, 4, 5, 6]


def test_it_needs_the_other_run_no_more(parent, tmp_path):
    (tmp_path / "other").symlink_to(parent)
    fedmef_dist.run(forked(tmp_path / "other"), tmp_path / "fork")
    (tmp_path / "other").unlink()
    longer = forked(tmp_path / "other", federation={"rounds": 7})
    assert fedmef_dist.run(longer, tmp_path / "fork").values["rounds"] == 7


def test_another_server_optimizer_and_callbacks_begin_anew(parent, tmp_path):
    stop = [{"name": "early_stopping", "patience": 9}]
    optimizer = {"name": "adam", "lr": 0.01}
    config = tiny(fork=str(parent), federation={"rounds": 6}, server_optimizer=optimizer, callbacks=stop)
    assert fedmef_dist.run(config, tmp_path / "fork").values["rounds"] == 6


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"method": {"name": "fedavg"}}, "a fork keeps its method"),
        ({"federation": {"rounds": 4}}, "that run has done 4 rounds"),
        ({"model": {"hidden": 16}}, "do not fit the run to fork: tensor mask/active"),
        ({"federation": {"client_state": "momentum"}, "optimizer": {"momentum": 0.9}}, "do not fit the run to fork"),
    ],
)
def test_what_cannot_be_forked_is_said_and_nothing_written(parent, tmp_path, changes, what):
    with pytest.raises(UserError, match=what) as caught:
        fedmef_dist.run(forked(parent, **changes), tmp_path / "fork")
    assert caught.value.where == f"fork={parent}"
    assert not (tmp_path / "fork" / "config.yaml").exists()
    assert not (tmp_path / "fork" / "metrics.jsonl").exists()


def test_a_run_is_no_fork_of_itself_nor_of_something_else(parent, tmp_path):
    (tmp_path / "same").symlink_to(parent)
    with pytest.raises(UserError, match="the directory holds another configuration's run; different: fork"):
        fedmef_dist.run(forked(parent), parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="forked from itself"):
        fedmef_dist.run(forked(tmp_path / "empty"), tmp_path / "empty")
    with pytest.raises(UserError, match="no run to fork"):
        fedmef_dist.run(forked(tmp_path / "empty"), tmp_path / "fork")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot read the run's configuration: Too many levels of symbolic links"):
        fedmef_dist.run(forked(tmp_path / "loop"), tmp_path / "fork")


def test_a_start_that_was_killed_before_the_checkpoint_forks_anew(parent, tmp_path, monkeypatch):
    from fedmef_dist.runs.checkpoint import CheckpointStore

    def killed(self, checkpoint):
        raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(CheckpointStore, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            fedmef_dist.run(forked(parent), tmp_path / "fork")
    assert (tmp_path / "fork" / "metrics.jsonl").exists()
    assert fedmef_dist.run(forked(parent), tmp_path / "fork").values["rounds"] == 6
    verify(tmp_path / "fork")
