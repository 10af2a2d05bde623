import shutil
from dataclasses import replace

import pytest
from made_runs import measurement

from fedmef_dist.base.errors import UserError
from fedmef_dist.cluster.collective_costs import Link
from fedmef_dist.scaling import simulation
from fedmef_dist.scaling.cluster_file import Cluster, LinkSettings
from fedmef_dist.scaling.cost_model import CostModel
from fedmef_dist.scaling.prediction import Predictor
from fedmef_dist.scaling.simulation import find_simulator, platform, simulate

needs_simgrid = pytest.mark.skipif(shutil.which("smpirun") is None, reason="SimGrid is not installed")


def predictor(backend, between="10us", **costs):
    inside = LinkSettings(latency="2us", bandwidth="5GB/s")
    far = LinkSettings(latency=between, bandwidth="2GB/s")
    cluster = Cluster(name="made", nodes=4, ranks_per_node=4, inside=inside, between=far, backend=backend)
    run = replace(measurement(1, 8.0, cohort=(10.0, 20.0, 30.0, 40.0)), reduce_bytes=4e6, evaluated=0.0)
    return Predictor(CostModel(**costs), cluster, [run])


@needs_simgrid
@pytest.mark.parametrize(
    ("backend", "between", "algorithm"),
    [
        ("gloo", "100us", "two-level"),
        ("gloo", "10us", "ring"),
        ("mpi", "10us", "halving and doubling"),
        ("nccl", "10us", "ring"),
    ],
)
def test_the_formula_is_that_of_the_simulated_messages(tmp_path, backend, between, algorithm):
    found = simulate(predictor(backend, between), 16, 16, tmp_path / "here")
    assert found.all_reduce == algorithm
    assert abs(found.error) < 0.1  # nothing but the all-reduce: 4 MB
    assert not (tmp_path / "here").exists()


@needs_simgrid
def test_compute_is_simulated_and_another_algorithm_takes_the_place_of_trees(tmp_path):
    found = simulate(predictor("nccl", between="1ms", rest=0.05, sample=0.001), 16, 32, tmp_path / "here")
    assert found.all_reduce == "halving and doubling"
    assert abs(found.error) < 0.05
    assert found.simulated > 0.1  # 32 clients of 25 samples on 16 ranks, and the rest


@needs_simgrid
def test_a_failing_simulator_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "_OPTIONS", ("--cfg=no/such:thing",))
    for _ in range(2):  # what the first one has left is removed
        with pytest.raises(UserError, match=r"SimGrid ended with status .*\nwhere: --simulate, 2 ranks\nmend: keep"):
            simulate(predictor("gloo"), 2, 4, tmp_path / "here")
    with pytest.raises(UserError, match="a folder of that name is there already"):
        simulate(predictor("gloo"), 2, 4, tmp_path)


def test_without_a_simulator_it_is_said_how_to_get_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"SimGrid is not installed.*\nwhere: --simulate\nmend: apt install"):
        find_simulator()


def test_the_platform_is_the_description():
    text = platform(replace(predictor("gloo").network(16), between=Link(2e-6, 1e9)))
    assert 'radical="0-3"' in text
    assert 'bw="1e+09Bps" lat="1e-06s" loopback_bw="5e+09Bps" loopback_lat="2e-06s"' in text
