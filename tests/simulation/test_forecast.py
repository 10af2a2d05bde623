from dataclasses import replace

import numpy as np
import pytest
from tiny import Recorder, alone, started, tiny

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.data.shapes import Shape
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.report.memory import label
from fedmef_dist.report.partition import describe, save_partition
from fedmef_dist.simulation.footprint import modelled
from fedmef_dist.simulation.forecast import Forecast, PartitionView, foretell, look_at_partition
from fedmef_dist.simulation.loop import Simulation

# Three clients and three labels.
VIEW = PartitionView(clients=3, counts=np.array([[6, 2, 0], [0, 0, 5], [1, 1, 1]]))


def simulation(tmp_path, **changes):
    return started(tiny(**changes), alone(), tmp_path)


def test_a_view_by_hand():
    assert VIEW.sizes.tolist() == [8, 5, 3]
    assert VIEW.labels.tolist() == [2, 1, 3]
    assert VIEW.dominance.tolist() == [0.75, 1.0, pytest.approx(1 / 3)]


SWAPS = {"density": 0.5, "adjust_every": 2, "adjust_until": 6}


@pytest.mark.parametrize(
    "method",
    [
        {"name": "fedmef", **SWAPS},
        {"name": "prunefl", "density": 0.5, "adjust_every": 2, "fixed_density": True, "initial": "none"},
        *({"name": name, **SWAPS} for name in ("feddst", "fedtiny", "fedrts")),
    ],
    ids=lambda method: method["name"],
)
def test_a_plan_foretells_what_a_run_accounts_for(tmp_path, method):
    recorder = Recorder()
    simulation(tmp_path, method=method).run(recorder)
    forecast = foretell(simulation(tmp_path, method=method), ranks=2)
    planned = forecast.rounds
    assert [one.up_bytes for one in planned] == [row["wire/up_bytes"] for row in recorder.rounds]
    assert [one.down_bytes for one in planned] == [row["wire/down_bytes"] for row in recorder.rounds]
    assert [one.flops for one in planned] == [row["flops/train"] for row in recorder.rounds]
    assert len({one.up_bytes for one in planned}) > 1  # adjusting rounds cost more
    assert forecast.wire_bytes == recorder.rounds[-1]["wire/total_bytes"]
    assert forecast.flops == pytest.approx(recorder.rounds[-1]["flops/total"])


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
    planned = foretell(run, ranks=2).rounds
    for number, one in enumerate(planned, start=1):
        assert sum(one.rank_clients) == one.trained == 3
        sizes = sorted(draw_cohort(run.population, run.config.federation, 0, number).samples.tolist())
        # Longest first: the largest on one rank, the next two on the other.
        loads = max(sizes[2], sizes[0] + sizes[1]), min(sizes[2], sizes[0] + sizes[1])
        assert one.imbalance == pytest.approx(loads[0] / (sum(loads) / 2))
    assert {one.imbalance for one in foretell(simulation(tmp_path), ranks=1).rounds} == {1.0}


def test_clients_that_keep_something_stay_on_their_rank(tmp_path):
    federation = {"clients": 4, "clients_per_round": 4, "client_state": "momentum"}
    run = simulation(tmp_path, federation=federation, optimizer={"momentum": 0.5})
    planned = foretell(run, ranks=2).rounds
    assert len({tuple(one.rank_clients) for one in planned}) == 1
    assert {sum(one.rank_clients) for one in planned} == {4}


def test_rounds_that_are_not_looked_at_count_as_those_of_their_kind(tmp_path, monkeypatch):
    method = {"name": "fedmef", "density": 0.5, "adjust_every": 2, "adjust_until": 4}
    federation = {"rounds": 40, "clients": 8, "clients_per_round": 8}

    def planned():
        return foretell(simulation(tmp_path, federation=federation, method=method), ranks=1)

    every = planned()
    assert len(every.rounds) == 40
    monkeypatch.setattr("fedmef_dist.simulation.forecast._ROUNDS", 6)
    monkeypatch.setattr("fedmef_dist.simulation.forecast._UPDATES", 0)
    first = planned()
    assert first.rounds == every.rounds[:6]
    assert [one.adjusts for one in first.rounds] == [False, True, False, False, False, False]
    # Everybody takes part in every round, so rounds of one kind are alike. The first is not: all get a mask.
    costs = [one.up_bytes + one.down_bytes for one in first.rounds]
    assert first.wire_bytes == pytest.approx(sum(costs) + 34 * (sum(costs) - costs[1]) / 5)
    assert abs(first.wire_bytes / every.wire_bytes - 1) < 0.02
    assert first.flops == pytest.approx(every.flops)
    # With more adjustments behind those that were looked at: a kind of its own.
    method["adjust_until"] = 40
    first = planned()
    costs = [one.up_bytes + one.down_bytes for one in first.rounds]
    assert [one.adjusts for one in first.rounds] == [False, True] * 3
    expected = sum(costs) + 17 * sum(costs[::2]) / 3 + 17 * sum(costs[1::2]) / 3
    assert first.wire_bytes == pytest.approx(expected, rel=0.05)


def test_a_thousand_clients_stand_for_more(tmp_path):
    run = simulation(tmp_path, federation={"clients": 5000}, data={"partition": {"scheme": "lazy_dirichlet"}})
    view = look_at_partition(run.dataset, run.population, seed=0)
    assert view.counts.shape == (1000, 4)
    assert view.clients == 5000
    text = describe(run.config, run.space, view, foretell(run, 3), [])
    assert "clients             5,000, of which 1,000 drawn" in text
    small = simulation(tmp_path)
    assert look_at_partition(small.dataset, small.population, seed=0).sizes.sum() == 160


def test_the_description(tmp_path):
    run = simulation(tmp_path)
    memory = modelled(run.config, Shape(run.dataset.shape, run.dataset.classes))
    lines = dict(
        line.split("  ", 1) for line in describe(run.config, run.space, VIEW, foretell(run, 2), memory).splitlines()
    )
    values = {name: value.strip() for name, value in lines.items()}
    assert values["samples a client"] == "3 to 8, median 5"
    assert values["labels a client"] == "1 to 3, median 2, of 3"
    assert values["commonest label"] == "33 % to 100 %, median 75 % of a client's samples"
    assert values["clients a round"] == "3.0 asked, 3.0 trained, 0.0 dropped, 0.0 surplus"
    assert values["clients a rank"] == "1.5 a round, 1 to 2"
    assert values["ranks"] == "2"
    assert values["rounds"] == "6; means and maxima below are over all of them"
    assert values["device memory"].startswith("fedavg: ")
    totals = {label(setting): device.total for setting, device in memory}
    assert totals["fedavg"] > totals["fedtiny"] > totals["fedmef, p = 0.5"] > totals["fedmef, p = 0.9"]


def test_a_method_without_a_density_is_shown_alone(tmp_path):
    run = simulation(tmp_path, method={"name": "fedavg"})
    shown = modelled(run.config, Shape(run.dataset.shape, run.dataset.classes))
    assert [setting.method for setting, _ in shown] == ["fedavg"]


def test_what_the_first_mask_costs_is_said_where_it_costs_anything(tmp_path):
    run = simulation(tmp_path)
    rounds = foretell(run, 2)
    assert "before round 1" not in describe(run.config, run.space, VIEW, rounds, [])
    text = describe(run.config, run.space, VIEW, rounds, [], (2_000_000, 3e9))
    (line,) = (line for line in text.splitlines() if line.startswith("before round 1"))
    assert line.split(maxsplit=3)[3] == "2 MB sent, 3 GFLOP"


def test_at_most_is_the_maximum_of_each_figure(tmp_path):
    run = simulation(tmp_path)
    one, *_ = foretell(run, 1).rounds
    rounds = [replace(one, up_bytes=up, down_bytes=down, flops=1e9 * up) for up, down in ((5, 70), (30, 2))]
    text = describe(run.config, run.space, VIEW, Forecast(rounds, 9e6, 3e9), [])
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    assert ["at", "most", "70 B down, 30 B up"] in lines
    assert "at most 30 GFLOP" in text
    assert ["bytes", "of", "the run    about 9 MB"] in lines


def test_a_picture(tmp_path):
    save_partition(VIEW, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
