"""A move of weights between two layers and a merge of two clients' masks by hand, and what holds for any.

Layer 0 has positions 0 to 7, layer 1 has 8 to 11. Active, with their weights:
    position  0    1    2    3    8    9
    value     0.1  0.8  -.6  0.4  0.2  -.2
With a share of 0.6 two of four leave, 0 and 3, and of two equal ones the first, 8. Of what stays the mean magnitudes
are 0.7 and 0.2: of the three that come layer 0 gets 3 * 0.7 / 0.9 = 2.33, rounded to 2, and layer 1 gets 1.
"""

import pytest
import torch
from made_methods import positions, server_for, sums_of, vector
from pydantic import ValidationError
from tiny import Recorder, Run, alone, started, tiny
from torch import nn

from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.flash import Flash, FlashSettings, SparseTraining
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = {0: 0.1, 1: 0.8, 2: -0.6, 3: 0.4, 8: 0.2, 9: -0.2}
METHOD = {"name": "flash", "density": 0.5, "initial_epochs": 3}
JMWST = METHOD | {"variant": "jmwst", "adjust_every": 2}


def example(**settings):
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    # 18 parameters, 6 of them never pruned: two thirds of all leave 6.
    method = Flash(FlashSettings(density=2 / 3, **settings), space, MethodContext(rounds=4))
    space.values[:12] = vector(WEIGHTS)
    space.set_mask(Mask(vector(WEIGHTS) != 0))
    return method, space


def test_a_client_moves_weights_between_layers():
    drawn = set()
    for client in range(20):
        _, space = example()
        work = SparseTraining(space, 0, 1, epochs=1, rate=1.0 - 1e-9)
        work.begin(LocalClient(client))
        for step in range(4):  # a single pass: in its middle
            work.prepare_step(step, 4, 0.1)
            assert (space.mask.version > 0) == (step >= 2)
        _, space = example()
        work = SparseTraining(space, 0, 1, epochs=2, rate=0.8)
        work.begin(LocalClient(client))
        assert work.prepare_step(1, 4, 0.1) == 0.1  # 0.8 (1 - 1 / 4) where the first of two passes ends
        active = positions(space.mask.active)
        assert {1, 2, 9} <= set(active)
        assert not space.values[[0, 3, 8]].any()  # also where one of them comes back at once
        assert space.layer_counts() == [4, 2]
        drawn.add(tuple(active))
        version = space.mask.version
        work.prepare_step(3, 4, 0.1)  # the last pass moves nothing
        assert space.mask.version == version
        upload = work.uploads(None)
        assert upload["weights"].positions.tolist() == active
        assert upload["densities"].values.tolist() == [0.5, 0.5]
    assert len(drawn) > 5
    assert {0, 3, 8} & set().union(*drawn)  # what leaves may come back


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_client_that_has_diverged_moves_nothing(value):
    _, space = example()
    work = SparseTraining(space, 0, 1, epochs=2, rate=0.8)
    work.begin(LocalClient(0))
    space.values[:8] = value  # a whole layer
    work.prepare_step(1, 4, 0.1)
    assert positions(space.mask.active) == sorted(WEIGHTS)


def test_the_server_takes_the_largest_by_the_clients_mean_counts():
    method, _ = example(variant="jmwst")
    server = server_for(method)
    server.start(method.space.values, method.space.mask.active)
    plan = method.plan(1, server.values)
    assert plan.adjusts
    # Of weights 1 and 3: five and one, four and two active; so on average 4.25 and 1.75, in all six: 4 and 2.
    first = {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.6, 4: 0.5, 8: 0.4}
    second = {0: -0.9, 1: 0.8, 2: 0.1, 5: 0.6, 8: 0.4, 10: 0.2}
    sums = {"weights": sums_of((1, first), (3, second))}
    values, union = method.aggregate(plan, Received(server.values, sums, 2))
    assert positions(union) == [0, 1, 2, 3, 4, 5, 8, 10]
    # An absent weight counts as 0: (0.9 - 2.7) / 4, 0.8, (0.7 + 0.3) / 4, 0.6 / 4, 0.5 / 4, 1.8 / 4, 0.4, 0.6 / 4.
    merged = {0: -0.45, 1: 0.8, 2: 0.25, 3: 0.15, 4: 0.125, 5: 0.45, 8: 0.4, 10: 0.15}
    torch.testing.assert_close(values[:12], vector(merged))
    method.space.set_mask(Mask(union, 1))
    assert positions(method.next_mask(plan, values, sums)) == [0, 1, 2, 5, 8, 10]
    holders, _ = example(variant="jmwst", average="holders")
    values, _ = holders.aggregate(plan, Received(server.values, sums, 2))
    torch.testing.assert_close(values[:12], vector({**first, 0: -0.45, 2: 0.25, 5: 0.6, 10: 0.2}))


def test_stage_1_finds_layer_densities_and_is_paid_for():
    run, again = (started(tiny(method=METHOD), alone()) for _ in range(2))
    space, start = run.space, run.method.first_counts
    assert run.server.digest() == again.server.digest()
    assert space.layer_counts() != start
    assert sum(space.layer_counts()) == sum(start) == run.method.total
    plain = started(tiny(method=METHOD | {"initial_epochs": 0}), alone())
    assert torch.equal(run.server.values[space.n_prunable :], plain.server.values[space.n_prunable :])
    assert plain.totals.wire_bytes == 0
    # Each client of the cohort gets the model with the random mask, and sends a number a layer.
    assert run.totals.wire_bytes > 3 * 4 * (space.total - space.n_prunable + run.method.total)
    samples = 3 * run.accounting.federation.batch_size
    assert run.totals.flops > 3 * 2 * run.accounting.flops.forward(start) * samples / 10
    rehearsed = started_rehearsal(METHOD)
    assert rehearsed.totals.wire_bytes == run.totals.wire_bytes
    assert rehearsed.totals.flops == run.totals.flops


def test_stage_1_goes_on_without_a_client_that_diverges(monkeypatch, caplog):
    def diverge(work, client):
        begin(work, client)
        if client.number == diverges:
            work.space.values[0] = torch.nan

    begin = SparseTraining.begin
    # Three of twelve clients are asked; the first of those is the one that diverges.
    diverges = int(draw_cohort(Run(tiny(), alone()).population, tiny().federation, tiny().seed, 0).clients[0])
    monkeypatch.setattr(SparseTraining, "begin", diverge)
    run = started(tiny(method=METHOD), alone())
    assert f"before round 1: client {diverges} refused" in caplog.text
    assert sum(run.space.layer_counts()) == run.method.total
    monkeypatch.undo()
    assert run.server.digest() != started(tiny(method=METHOD), alone()).server.digest()


def started_rehearsal(method):
    run = Run(tiny(method=method), alone())
    run.start(rehearses=True)
    return run


@pytest.mark.parametrize("method", [METHOD, JMWST])
def test_a_run(method, tmp_path):
    run, recorder = started(tiny(method=method), alone(), tmp_path), Recorder()
    first = run.space.mask
    run.run(recorder)
    moves = [row["sparsity/changed"] > 0 for row in recorder.rounds]
    assert moves == [False, "variant" in method] * 3
    assert run.space.mask.count == first.count
    assert not run.server.values[: run.space.n_prunable][~run.space.mask.active].any()


def test_settings():
    with pytest.raises(ValidationError, match="do not differ"):
        FlashSettings(average="holders")
    until = FlashSettings(variant="jmwst", adjust_every=2, adjust_until=4)
    assert [number for number in range(1, 9) if until.adjusts(number)] == [2, 4]
