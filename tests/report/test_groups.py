import math
from dataclasses import replace

import pytest
import yaml

from fedmef_dist.report.groups import Spread, group_runs, spread
from fedmef_dist.report.quantities import QUANTITIES, bytes_per_client_round
from fedmef_dist.report.runs import read_run


def test_runs_that_differ_only_in_seed_and_name_are_one_group(make_run):
    runs = [
        read_run(make_run("fedmef-seed0", seed=0, accuracies=(0.5, 0.90))),
        read_run(make_run("dense", "fedavg")),
        read_run(make_run("fedmef-seed1", seed=1, accuracies=(0.5, 0.94))),
    ]
    sparse, dense = group_runs(runs)
    assert (sparse.label, sparse.method, len(sparse.runs)) == ("fedmef", "fedmef", 2)
    assert (dense.method, len(dense.runs)) == ("fedavg", 1)
    last = sparse.spread(QUANTITIES["accuracy_last"])
    assert last.mean == pytest.approx(0.92) == sparse.mean("eval/accuracy_last")
    assert last.deviation == pytest.approx(0.02 * math.sqrt(2))
    assert dense.spread(QUANTITIES["accuracy_last"]) == Spread(0.9, None)


def test_a_value_that_one_seed_lacks_has_no_mean(make_run):
    runs = [read_run(make_run("a0", seed=0)), read_run(make_run("a1", seed=1, **{"reference/wire_bytes": None}))]
    (group,) = group_runs(runs)
    assert group.spread(QUANTITIES["dense_wire_bytes"]) == Spread(None, None)
    assert spread([]) == Spread(None, None)


def test_another_setting_is_another_group(make_run):
    first, second = make_run("a"), make_run("b")
    config = yaml.safe_load((second / "config.yaml").read_text())
    config["federation"]["batch_size"] = 5
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    assert [group.label for group in group_runs([read_run(first), read_run(second)])] == ["a", "b"]


def test_the_order_of_settings_makes_no_group(make_run):
    first = read_run(make_run("a"))
    second = replace(first, config=dict(reversed(first.config.items())) | {"seed": 1})
    assert len(group_runs([first, second])) == 1


def test_bytes_of_a_client_and_round_are_the_total_over_all_trainings(make_run):
    # 2 MB over 4 rounds of 5 clients, one of which trained only 3: 18 trainings.
    assert bytes_per_client_round(read_run(make_run("a", logged={2: {"clients/trained": 3}}))) == 2e6 / 18
    nobody = {number: {"clients/trained": 0} for number in range(1, 5)}
    assert bytes_per_client_round(read_run(make_run("b", logged=nobody))) is None


def test_seeds_that_begin_with_runs_of_their_own_are_one_group(make_run):
    run = read_run(make_run("a"))

    def beginning(seed, fork, start_from):
        return replace(run, config={**run.config, "seed": seed, "fork": fork, "model": {"start_from": start_from}})

    runs = [beginning(seed, f"runs/seed={seed}_dense", f"runs/dense-seed{seed}") for seed in range(2)]
    assert len(group_runs(runs)) == 1
    assert runs[0].config["model"]["start_from"] == "runs/dense-seed0"
    others = [beginning(0, None, f"runs/density-0.{number}") for number in range(2)]
    assert len({one.label for one in group_runs(others)}) == 2
