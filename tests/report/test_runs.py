import math

import pytest
import yaml

from fedmef_dist.errors import UserError
from fedmef_dist.report.runs import group_runs, read_run


def test_runs_that_differ_only_in_seed_and_name_are_one_group(make_run):
    runs = [
        read_run(make_run("fedmef-seed0", seed=0, accuracies=(0.5, 0.90))),
        read_run(make_run("dense", "fedavg")),
        read_run(make_run("fedmef-seed1", seed=1, accuracies=(0.5, 0.94))),
    ]
    sparse, dense = group_runs(runs)
    assert (sparse.label, sparse.method, len(sparse.runs)) == ("fedmef", "fedmef", 2)
    assert (dense.label, dense.method, len(dense.runs)) == ("dense", "fedavg", 1)
    assert sparse.mean("eval/accuracy_last") == pytest.approx(0.92)
    assert sparse.deviation("eval/accuracy_last") == pytest.approx(0.02 * math.sqrt(2))
    assert dense.deviation("eval/accuracy_last") is None


def test_a_value_that_one_seed_lacks_has_no_mean(make_run):
    runs = [read_run(make_run("a0", seed=0)), read_run(make_run("a1", seed=1, **{"reference/wire_bytes": None}))]
    (group,) = group_runs(runs)
    assert group.mean("reference/wire_bytes") is None
    assert group.deviation("reference/wire_bytes") is None


def test_another_setting_is_another_group(make_run):
    first, second = make_run("a"), make_run("b")
    config = yaml.safe_load((second / "config.yaml").read_text())
    config["federation"]["rounds"] = 5
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    assert [group.label for group in group_runs([read_run(first), read_run(second)])] == ["a", "b"]


def test_groups_of_one_name_are_told_apart_by_their_paths(make_run):
    runs = [read_run(make_run("x/run", "fedmef")), read_run(make_run("y/run", "fedavg"))]
    assert [group.label for group in group_runs(runs)] == [str(run.path) for run in runs]


@pytest.mark.parametrize(
    ("name", "seeds_label"), [("sweep_3", "sweep"), ("a-s0", "a"), ("resnet8-seed=1", "resnet8"), ("17", "17")]
)
def test_the_label_of_several_seeds_drops_the_seed(make_run, name, seeds_label):
    (group,) = group_runs([read_run(make_run(name, seed=0)), read_run(make_run("other", seed=1))])
    assert group.label == seeds_label


def test_a_missing_directory_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="there is no run directory"):
        read_run(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_missing_file_is_the_users_error(make_run, name):
    directory = make_run("a")
    (directory / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name}"):
        read_run(directory)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", "a: [1", "cannot be read"),
        ("config.yaml", "name: a", "not what a run writes"),
        ("config.yaml", "method: fedmef", "not what a run writes"),
        ("metrics.jsonl", '{"round": 1}\n{"rou', "cannot be read"),
        ("metrics.jsonl", "", "not what a run writes"),
        ("metrics.jsonl", "[1]\n", "not what a run writes"),
        ("summary.json", "{", "cannot be read"),
        ("summary.json", "[]", "not what a run writes"),
    ],
)
def test_a_damaged_file_is_the_users_error_and_named(make_run, name, text, message):
    directory = make_run("a")
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_run(directory)
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
