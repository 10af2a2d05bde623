from pathlib import Path

import pytest
from made_runs import measurement

from fedmef_dist.cluster.collective_costs import Link
from fedmef_dist.scaling.cluster_file import Cluster, LinkSettings
from fedmef_dist.scaling.cost_model import CostModel
from fedmef_dist.scaling.fitting import fit
from fedmef_dist.scaling.points import Point, Study
from fedmef_dist.scaling.prediction import Predictor, modelled_seconds
from fedmef_dist.scaling.prediction_plots import save_prediction_plots
from fedmef_dist.scaling.prediction_report import (
    held_out_section,
    model_section,
    prediction_section,
    simulation_section,
)
from fedmef_dist.scaling.simulation import Simulated

LINK = LinkSettings(latency="1us", bandwidth="1GB/s")
STUDY = Study((Point(1, 50, 8),), (), ())


def cluster(**changes):
    return Cluster(**{"name": "made", "nodes": 8, "ranks_per_node": 2, "inside": LINK, "between": LINK,
                      "backend": "gloo", **changes})  # fmt: skip


def predictor(model, described=None, cohort=(10.0,) * 8):
    return Predictor(model, described, [measurement(1, 8.0, cohort=cohort)])


def test_strong_and_weak_by_hand():
    predictions = predictor(CostModel(sample=0.1)).all(STUDY, [4, 8, 16])
    assert [each.seconds for each in predictions.strong] == pytest.approx([2.0, 1.0, 1.0])  # 8 clients only
    assert [each.efficiency for each in predictions.strong] == pytest.approx([1.0, 1.0, 0.5])
    assert [each.bound for each in predictions.strong] == ["training", "training", "slowest client"]
    assert [each.cohort for each in predictions.weak] == [32, 64, 128]
    assert [each.efficiency for each in predictions.weak] == pytest.approx([1.0] * 3)
    assert [row[0].cohort for row in predictions.cohorts] == [10**power for power in range(1, 8)]


def test_beyond_enough_ranks_no_more_help():
    assert predictor(CostModel(sample=0.1)).enough(8, 64) == 8
    # A latency a rank: 0.8 / P + 2 (P - 1) a: the best is near sqrt(0.4 / a) = 6.
    slow = CostModel(sample=0.01, inside=Link(0.01, float("inf")))
    assert predictor(slow).enough(8, 64) in (4, 8)


def test_a_described_cluster_takes_the_place_of_what_was_measured():
    model = CostModel(client=1.0, sample=0.1, neighbour=9.0, crowding=9.0, rest=4.0, jitter=0.3, inside=Link(1.0, 1.0))
    faster = predictor(model, cluster(speed=2.0, jitter=0.0))
    assert faster.predict(1, 8).seconds == pytest.approx(8 * (1.0 + 1.0) / 2 + 2.0)
    told = predictor(model, cluster(seconds_per_sample=0.2, jitter=0.0)).predict(1, 8)
    assert told.seconds == pytest.approx(8 * (1.0 + 2.0) + 4.0)
    assert faster.network(4).inside == Link(1e-6, 1e9)


def test_a_run_of_many_rounds_on_many_ranks():
    each = predictor(CostModel(sample=0.1)).predict(4, 8)  # 2 s a round
    assert each.run_seconds(100, 10.0) == pytest.approx(210.0)
    assert each.device_hours(100, 10.0) == pytest.approx(4 * 210 / 3600)


def test_a_measured_point_is_modelled_with_its_own_cohorts():
    assert modelled_seconds(CostModel(sample=0.1), [measurement(2, 4.0, cohort=(10.0,) * 8)]) == pytest.approx(4.0)


def test_the_report_has_what_was_asked(tmp_path):
    made = predictor(CostModel(sample=0.1, rest=0.01), cluster())
    text = prediction_section(made, made.all(STUDY, [4, 16]), 50)
    assert "Cluster `made`: 8 nodes with 2 ranks each, ranks 1 times as fast" in text
    assert "| 4 | 8 | 2.01 | 99.6 | training | ring | 100.5 s | 0.1 |" in text
    assert "| 16 | 8 | 1.01 | 49.6 | slowest client | two-level |" in text
    assert "| 10,000,000 |" in text
    table = model_section(fit([measurement(1, 3.0)]))
    assert "| the rest of a round | 0.00 ms | 1 runs of 2 rounds |  |" in table
    simulated = [Simulated(4, 8, "two-level", 2.0, 2.2), Simulated(16, 8, "two-level", 1.0, 1.01)]
    section = simulation_section(simulated)
    assert "| 4 | 8 | two-level | 2 | 2.2 | +10.00 |" in section
    assert "Further apart than 5 %: 4 ranks" in section
    assert "5 %: 16" not in section
    files = save_prediction_plots(made, 8, [4, 16], simulated, tmp_path)
    assert len(files) == 3
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


@pytest.mark.parametrize(
    ("ranks", "said"), [(1, "with collectives that take no time"), (2, "as quick as the one meas")]
)
def test_the_report_says_what_it_knows_of_the_network_and_of_the_rounds(ranks, said):
    made = Predictor(CostModel(sample=0.1), None, [measurement(ranks, 8.0)])
    text = prediction_section(made, made.all(STUDY, [4]), 50)
    assert said in text
    assert "100 % evaluate and 0 % move the mask" in text


def test_more_ranks_than_a_cluster_has_are_refused(tmp_path):
    from fedmef_dist.base.errors import UserError
    from fedmef_dist.scaling.scale import Outlook

    file = Path(__file__).parents[2] / "configs" / "clusters" / "workstation_8gpu.yaml"
    assert Outlook("", file).numbers([1, 2]) == [4, 8]
    assert Outlook("").numbers([1, 2]) == [4, 8, 16, 32, 64]
    with pytest.raises(UserError, match="the cluster has 8 ranks, not 64\nwhere: --predict"):
        Outlook("4,64", file).numbers([1, 2])


def test_more_ranks_are_predicted_from_few():
    few = [measurement(ranks, 8.0 / ranks, cohort=(10.0,) * 8) for ranks in (1, 4)]
    results = {run.point: [run] for run in few}
    assert held_out_section(results, [], 0.0) == ""
    many = measurement(8, 1.25, cohort=(10.0,) * 8)  # 8 clients of a second each, and a quarter of one lost
    text = held_out_section(results | {many.point: [many]}, [], 0.0)
    assert "| 8 | 8 | 1.250 | 1.000 | -20.0 |" in text
