import numpy as np
import pytest
from tiny import Recorder, alone, started, tiny

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.data.shapes import Shape
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.report.memory import label
from fedmef_dist.report.partition import describe, save_partition
from fedmef_dist.simulation.footprint import modelled
from fedmef_dist.simulation.forecast import PartitionView, look_at_partition, plan_rounds
from fedmef_dist.simulation.loop import Simulation

# Three clients and three labels.
VIEW = PartitionView(clients=3, counts=np.array([[6, 2, 0], [0, 0, 5], [1, 1, 1]]))


def simulation(tmp_path, **changes):
    return started(tiny(**changes), alone(), tmp_path)


def test_a_view_by_hand():
    assert VIEW.sizes.tolist() == [8, 5, 3]
    assert VIEW.labels.tolist() == [2, 1, 3]
    assert VIEW.dominance.tolist() == [0.75, 1.0, pytest.approx(1 / 3)]


def test_a_plan_foretells_what_a_run_accounts_for(tmp_path):
    recorder = Recorder()
    simulation(tmp_path).run(recorder)
    planned = plan_rounds(simulation(tmp_path), ranks=2)
    assert [one.up_bytes for one in planned] == [row["wire/up_bytes"] for row in recorder.rounds]
    assert [one.down_bytes for one in planned] == [row["wire/down_bytes"] for row in recorder.rounds]
    assert [one.flops for one in planned] == [row["flops/train"] for row in recorder.rounds]
    assert len({one.up_bytes for one in planned}) > 1  # adjusting rounds cost more


@pytest.mark.parametrize(
    "method",
    [{"name": "fedtiny"}, {"name": "static", "criterion": "snip", "scores": "clients"}],
)
def test_a_rehearsed_start_asks_no_client_and_costs_the_same(tmp_path, monkeypatch, method):
    real = simulation(tmp_path, method={"density": 0.5, **method})
    monkeypatch.setattr(Preparation, "average", None)
    rehearsed = Simulation(real.config, alone())
    rehearsed.start(rehearses=True)
    assert rehearsed.totals.wire_bytes == real.totals.wire_bytes > 0
    assert rehearsed.totals.flops == real.totals.flops > 0
    assert rehearsed.space.mask.count == real.space.mask.count


def test_the_ranks_share_a_round(tmp_path):
    run = simulation(tmp_path)
    planned = plan_rounds(run, ranks=2)
    for number, one in enumerate(planned, start=1):
        assert sum(one.rank_clients) == one.trained == 3
        sizes = sorted(draw_cohort(run.population, run.config.federation, 0, number).samples.tolist())
        # Longest first: the largest on one rank, the next two on the other.
        loads = max(sizes[2], sizes[0] + sizes[1]), min(sizes[2], sizes[0] + sizes[1])
        assert one.imbalance == pytest.approx(loads[0] / (sum(loads) / 2))
    assert {one.imbalance for one in plan_rounds(simulation(tmp_path), ranks=1)} == {1.0}


def test_clients_that_keep_something_stay_on_their_rank(tmp_path):
    federation = {"clients": 4, "clients_per_round": 4, "client_state": "momentum"}
    planned = plan_rounds(simulation(tmp_path, federation=federation, optimizer={"momentum": 0.5}), ranks=2)
    assert len({tuple(one.rank_clients) for one in planned}) == 1
    assert {sum(one.rank_clients) for one in planned} == {4}


def test_fifty_rounds_are_enough(tmp_path):
    assert len(plan_rounds(simulation(tmp_path, federation={"rounds": 400}), ranks=1)) == 50


def test_a_thousand_clients_stand_for_more(tmp_path):
    run = simulation(tmp_path, federation={"clients": 5000}, data={"partition": {"scheme": "lazy_dirichlet"}})
    view = look_at_partition(run.dataset, run.population, seed=0)
    assert view.counts.shape == (1000, 4)
    assert view.clients == 5000
    text = describe(run.config, run.space, view, plan_rounds(run, 3), [])
    assert "clients             5,000, of which 1,000 drawn" in text
    small = simulation(tmp_path)
    assert look_at_partition(small.dataset, small.population, seed=0).sizes.sum() == 160


def test_the_description(tmp_path):
    run = simulation(tmp_path)
    memory = modelled(run.config, Shape(run.dataset.shape, run.dataset.classes))
    lines = dict(
        line.split("  ", 1) for line in describe(run.config, run.space, VIEW, plan_rounds(run, 2), memory).splitlines()
    )
    values = {name: value.strip() for name, value in lines.items()}
    assert values["samples a client"] == "3 to 8, median 5"
    assert values["labels a client"] == "1 to 3, median 2, of 3"
    assert values["commonest label"] == "33 % to 100 %, median 75 % of a client's samples"
    assert values["clients a round"] == "3.0 asked, 3.0 trained, 0.0 dropped, 0.0 surplus"
    assert values["clients a rank"] == "1.5 a round, 1 to 2"
    assert values["ranks"] == "2"
    assert values["device memory"].startswith("fedavg: ")
    totals = {label(setting): device.total for setting, device in memory}
    assert totals["fedavg"] > totals["fedtiny"] > totals["fedmef, p = 0.5"] > totals["fedmef, p = 0.9"]


def test_a_method_without_a_density_is_shown_alone(tmp_path):
    run = simulation(tmp_path, method={"name": "fedavg"})
    shown = modelled(run.config, Shape(run.dataset.shape, run.dataset.classes))
    assert [setting.method for setting, _ in shown] == ["fedavg"]


def test_what_the_first_mask_costs_is_said_where_it_costs_anything(tmp_path):
    run = simulation(tmp_path)
    rounds = plan_rounds(run, 2)
    assert "before round 1" not in describe(run.config, run.space, VIEW, rounds, [])
    text = describe(run.config, run.space, VIEW, rounds, [], (2_000_000, 3e9))
    (line,) = (line for line in text.splitlines() if line.startswith("before round 1"))
    assert line.split(maxsplit=3)[3] == "2 MB sent, 3 GFLOP"


def test_a_picture(tmp_path):
    save_partition(VIEW, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
