"""A tier's part of twelve weights and the average over those that hold them, by hand; runs with two tiers.

Layer 0 has positions 0 to 7, layer 1 has 8 to 11; 0, 1, 2, 3 and 8, 9 are active. Of 18 parameters 6 are never pruned:
a tier of density 1/2 trains three weights, in proportion two of layer 0 and one of layer 1.
"""

import numpy as np
import pytest
import torch
from made_methods import positions, vector
from tiny import Recorder, alone, started, tiny
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.cohort import TierSettings
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.clients.tiers import HELD, Tiers
from fedmef_dist.commands.check import configuration
from fedmef_dist.session.conformance import check_method
from fedmef_dist.simulation.forecast import foretell
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = {0: 0.1, 1: 0.8, 2: -0.6, 3: 0.4, 8: 0.2, 9: -0.3}
TWO = [{"share": 0.5, "density": 0.35}]
KEYS = ("clients", "density", "up_bytes", "flops", "accuracy")


def example():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    space.values[:12] = vector(WEIGHTS)
    space.set_mask(Mask(vector(WEIGHTS) != 0))
    return space, Tiers([TierSettings(share=0.5, density=0.5)], space, 0, None)


def test_a_tier_trains_the_largest_weights_of_each_layer():
    space, tiers = example()
    low, full = tiers.round(RoundPlan(1, space.values.clone()), space.mask)
    assert positions(low.mask.active) == [1, 2, 9]
    assert (low.is_part, full.is_part) == (True, False)
    assert full.mask is space.mask
    torch.testing.assert_close(low.plan.values[:12], vector({1: 0.8, 2: -0.6, 9: -0.3}))
    assert [tier.plan.collections[-1].name for tier in (low, full)] == [HELD, HELD]
    assert [tier.plan.collections[-1].counts for tier in (low, full)] == [[2, 1], [4, 2]]
    assert len(tiers) == 2


def test_the_average_is_over_those_that_hold_a_weight():
    space, tiers = example()
    plan, average = RoundPlan(1, space.values.clone()), torch.zeros(space.total)
    held, votes = vector({1: 0.5, 2: 0.5}), torch.zeros(12, dtype=torch.int64)
    votes[[1, 2]] = 3
    merged = tiers.merge(plan, average, held, votes)[:12]
    torch.testing.assert_close(merged, vector({**WEIGHTS, 1: 0.5, 2: 0.5}))


def test_shares_that_add_up_to_one_leave_nobody_over():
    space, tiers = example()
    assert tiers.populated == len(tiers) == 2
    shares = [0.1] * 10  # whose sum is 1 less a rounding error
    all_claimed = Tiers([TierSettings(share=share, density=0.5) for share in shares], space, 0, None)
    assert (all_claimed.populated, len(all_claimed)) == (10, 11)
    assert set(all_claimed.of(np.arange(4000))) == set(range(10))


def test_clients_stay_in_their_tier():
    space, _ = example()
    settings = [TierSettings(share=0.25, density=0.45), TierSettings(share=0.5, density=0.5)]
    tiers = Tiers(settings, space, 3, None)
    found = tiers.of(np.arange(4000))
    np.testing.assert_allclose(np.bincount(found) / 4000, [0.25, 0.5, 0.25], atol=0.03)
    assert tiers.of(np.array([17, 5])).tolist() == [found[17], found[5]]
    assert not len(Tiers([], space, 3, "whatever"))


def test_wrong_tiers_are_refused():
    with pytest.raises(UserError, match=r"add up to 1\.2"):
        tiny(federation={"tiers": [{"share": 0.6, "density": 0.3}] * 2})
    with pytest.raises(UserError, match="cannot be reached") as error:
        started(tiny(federation={"tiers": [{"share": 0.6, "density": 0.01}]}), alone())
    assert "federation.tiers" in str(error.value)
    with pytest.raises(UserError, match="this method has no tiers: it prunes nothing"):
        started(tiny(method={"name": "fedavg"}, federation={"tiers": TWO}), alone())


def test_a_run_with_two_tiers(tmp_path):
    config = tiny(federation={"tiers": TWO, "clients_per_round": 6}, evaluation={"every": 2})
    run, recorder = started(config, alone(), tmp_path), Recorder()
    planned = foretell(started(config, alone()), 1)
    run.run(recorder)
    rows = recorder.rounds
    for row in rows:
        low, full = (
            {key: row[f"tier{tier}/{key}"] for key in ("clients", "density", "up_bytes", "flops")} for tier in (0, 1)
        )
        assert low["clients"] + full["clients"] == row["clients/trained"] == 6
        assert low["density"] == pytest.approx(0.35, abs=1e-3)
        assert full["density"] == pytest.approx(0.5, abs=1e-3)
        assert low["up_bytes"] + full["up_bytes"] == row["wire/up_bytes"]
        assert low["flops"] + full["flops"] == pytest.approx(row["flops/train"])
        assert low["up_bytes"] / low["clients"] < full["up_bytes"] / full["clients"]
    assert 0 <= rows[1]["tier0/accuracy"] <= 1
    assert rows[1]["tier1/accuracy"] == rows[1]["eval/accuracy"]
    # In an ordinary round a client of the lower tier sends 4 bytes less for each weight that it does not have.
    space, first = run.space, rows[0]
    missing = round(0.5 * space.n_parameters) - round(0.35 * space.n_parameters)
    each = [first[f"tier{tier}/up_bytes"] / first[f"tier{tier}/clients"] for tier in (0, 1)]
    assert each[1] - each[0] == 4 * missing
    assert [one.up_bytes for one in planned.rounds] == [row["wire/up_bytes"] for row in rows]
    assert not run.server.values[: space.n_prunable][~space.mask.active].any()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "feddst", "adjust_every": 2, "adjust_until": 6},
        {"name": "fedsgc", "adjust_every": 1, "adjust_until": 6},
        {"name": "fedrts", "adjust_every": 1, "adjust_until": 6},
        {"name": "flash", "variant": "jmwst", "initial_epochs": 1},
        {"name": "sparsyfed"},
    ],
    ids=lambda method: method["name"],
)
def test_where_clients_have_masks_of_their_own_a_part_is_shorter_too(tmp_path, method):
    federation = {"tiers": TWO, "clients_per_round": 6, "rounds": 2}
    config = tiny(method=method | {"density": 0.5}, federation=federation, evaluation={"every": 1})
    run, recorder = started(config, alone(), tmp_path), Recorder()
    run.run(recorder)
    for row in recorder.rounds:
        low, full = ({key: row[f"tier{tier}/{key}"] for key in KEYS} for tier in (0, 1))
        assert low["up_bytes"] / low["clients"] < full["up_bytes"] / full["clients"]
        assert low["up_bytes"] + full["up_bytes"] == row["wire/up_bytes"]
        assert low["flops"] + full["flops"] == pytest.approx(row["flops/train"])
        assert low["density"] == pytest.approx(0.35, abs=1e-3)
        assert 0 <= low["accuracy"] <= 1
    if method["name"] != "sparsyfed":  # its density is that of the union
        assert recorder.rounds[-1]["sparsity/density"] == pytest.approx(0.5, abs=1e-3)
    assert not run.server.values[: run.space.n_prunable][~run.space.mask.active].any()


@pytest.mark.parametrize(
    "method", ["fedmef", "prunefl", "fedtiny", "feddst", "fedsgc", "fedrts", "sparsyfed", "flash method.variant=jmwst"]
)
def test_one_digest_on_any_number_of_ranks_and_after_a_resume(method):
    small = ["model={name: cnn, width: 0.125, hidden: 8}", "federation.rounds=3", "federation.batch_size=32"]
    tiers = "federation.tiers=[{share: 0.5, density: 0.3}]"
    name, *own = method.split()
    promises, _ = check_method(configuration(name, None, [*small, tiers, *own, "method.density=0.5"]))
    assert {promise.name: promise.broken for promise in promises if promise.broken} == {}
