"""Runs whose clients train beside each other: the digest of those in which they train one after another."""

import logging

import pytest
import torch
from device_on_cpu import take_the_cpu_for_a_device
from tiny import Run, alone, started, tiny

from fedmef_dist.clients.client import OutOfRoomError
from fedmef_dist.clients.cohort import draw_cohort
from fedmef_dist.cluster.interruption import RoundAbandonedError
from fedmef_dist.cluster.thread_ranks import ThreadRanks
from fedmef_dist.layers import room

BATCHES = {"clients_per_round": 5, "batch_size": 8}


def played(slots, rounds=2, **changes):
    changes["federation"] = BATCHES | changes.get("federation", {})
    run = started(tiny(runtime={"slots": slots}, **changes), alone())
    metrics = []
    for run.round in range(1, rounds + 1):
        metrics.append(run.play_round())
    return run, metrics


def kept(run):
    return {name: tensor.tolist() for name, tensor in run.kept.state().items()} if run.kept else {}


def in_order(metrics):
    return [{key: value for key, value in one.items() if not key.startswith("time/")} for one in metrics]


CASES = {
    "fedmef": {"sap": {"selection": "carried"}},
    "scaffold": {"method": {"name": "scaffold"}, "model": {"norm": "batch"}},
    "prunefl": {"method": {"name": "prunefl", "density": 0.5, "adjust_every": 2}},
    "kept states": {
        "method": {"name": "fedavg"},
        "optimizer": {"momentum": 0.9, "prox_mu": 0.1},
        "federation": {"client_state": "momentum"},
    },
    "tiers with masks of their own": {
        "method": {"name": "feddst", "density": 0.5, "adjust_every": 2},
        "federation": {"tiers": [{"share": 0.5, "density": 0.4}]},
    },
    "tiers": {"federation": {"tiers": [{"share": 0.5, "density": 0.4}], "clients_per_round": 7}},
}


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_slots_has_one_digest(case):
    one, metrics = played(1, **CASES[case])
    for slots in (2, 4):
        other, found = played(slots, **CASES[case])
        assert in_order(found) == in_order(metrics)
        assert kept(other) == kept(one)


def test_layers_that_draw_draw_each_clients_own_numbers():
    changes = {
        "model": {"name": "mobilenet_v2", "width": 0.1},
        "federation": {"clients_per_round": 2, "batch_size": 16},
    }
    assert played(2, rounds=1, **changes)[0].server.digest() == played(1, rounds=1, **changes)[0].server.digest()


def test_two_ranks_with_slots_have_the_digest_of_one_without():
    config = tiny(runtime={"slots": 2}, federation=BATCHES)
    ranks = ThreadRanks(2)
    # One after another: first weights are drawn from torch's generator, which all threads share.
    runs = [Run(config, group) for group in ranks.groups]

    def play(run):
        run.start()
        for run.round in (1, 2):
            run.play_round()
        return run.server.digest()

    assert ranks.run(runs, play) == 2 * [played(1)[0].server.digest()]


def test_clients_without_enough_room_are_trained_again_beside_the_others(monkeypatch, caplog):
    changes = {
        "sap": {"enabled": True, "prune_ratio": 0.0},
        "federation": {"client_state": "momentum"},
        "optimizer": {"momentum": 0.9},
    }
    expected = played(1, **changes)[0].server.digest()
    take_the_cpu_for_a_device(monkeypatch)
    monkeypatch.setattr(room, "HEADROOM", 0.9)
    with caplog.at_level(logging.INFO):
        assert played(3, **changes)[0].server.digest() == expected
    assert sum("trained again" in record.message for record in caplog.records) > 3


def test_diverging_clients_are_refused_whoever_is_beside_them():
    changes = {"optimizer": {"lr": 1000.0}}
    metrics, found = (played(slots, rounds=2, **changes)[1] for slots in (1, 3))
    assert metrics[0]["clients/refused"] > 0
    assert in_order(found) == in_order(metrics)


def test_models_are_made_for_as_many_clients_as_there_are_and_the_runs_own_is_left_alone():
    run, _ = played(4, rounds=0, federation={"clients_per_round": 2})
    state = torch.get_rng_state()
    run.round = 1
    mask, digest = run.space.mask, run.space.values.clone()
    total = run.local.train(*asked(run))
    assert len(total.verdicts()) == 2
    assert run.space.mask is mask
    assert run.space.values.equal(digest)
    assert torch.get_rng_state().equal(state)
    spaces = {id(client.space.values) for client, _ in run.local._slots(2)}
    assert len(spaces) == 2
    assert id(run.space.values) not in spaces


def asked(run):
    cohort = draw_cohort(run.population, run.config.federation, run.config.seed, run.round)
    return cohort, run.method.plan(run.round, run.server.values), run.rate


def test_seconds_are_shares_of_the_time_in_which_they_trained_beside_each_other():
    run, metrics = played(4, rounds=1)
    count, _, seconds, _, _ = run.local.times.sums
    assert count == 5
    assert 0 < seconds <= metrics[0]["time/train"]


def test_a_round_that_is_abandoned_leaves_no_client_behind(monkeypatch):
    run, _ = played(3, rounds=1)
    checks, check = [], run.grace.check

    def abandons():
        checks.append(1)
        if len(checks) > 4:
            raise RoundAbandonedError
        check()

    monkeypatch.setattr(run.grace, "check", abandons)
    run.round = 2
    assert run.play_round() is None
    monkeypatch.undo()
    monkeypatch.setattr(run.grace, "_abandoned", False)
    found = run.play_round()
    assert found["model/digest"] == played(1, rounds=2)[1][1]["model/digest"]


def test_an_error_of_one_client_ends_the_round(monkeypatch):
    run, _ = played(3, rounds=1)
    client, _ = run.local._slots(3)[1]

    def broken(*arguments):
        yield
        raise OutOfRoomError

    monkeypatch.setattr(client, "training", broken)
    run.round, mask = 2, run.space.mask
    with pytest.raises(OutOfRoomError):
        run.play_round()
    assert run.space.mask is mask
