"""Whole runs with static shapes, to the digest of the CPU: here the CPU stands for a device."""

import logging

import pytest
from device_on_cpu import take_the_cpu_for_a_device
from tiny import alone, started, tiny

from fedmef_dist.layers import room


def digest(rounds=3, **changes):
    simulation = started(tiny(**changes), alone())
    for number in range(1, rounds + 1):
        simulation.round = number
        simulation.play_round()
    return simulation.server.digest()


CASES = [
    {},
    {"sap": {"prune_ratio": 0.9, "scope": "sample"}},
    {"sap": {"prune_ratio": 0.5, "selection": "carried"}},
    {"sap": {"prune_ratio": 0.0}, "method": {"name": "scaffold"}, "model": {"norm": "none"}},
]


@pytest.mark.parametrize("changes", CASES)
def test_a_run_keeps_its_digest(changes, monkeypatch):
    changes = {**changes, "sap": {"enabled": True, **changes.get("sap", {})}}
    on_cpu = digest(**changes)
    take_the_cpu_for_a_device(monkeypatch)
    assert digest(**changes) == on_cpu


def test_clients_without_enough_room_are_trained_again_to_the_same_digest(monkeypatch, caplog):
    changes = {
        "sap": {"enabled": True, "prune_ratio": 0.0},
        "federation": {"client_state": "momentum"},
        "optimizer": {"momentum": 0.9},
    }
    on_cpu = digest(**changes)
    take_the_cpu_for_a_device(monkeypatch)
    monkeypatch.setattr(room, "HEADROOM", 0.9)
    with caplog.at_level(logging.INFO):
        assert digest(**changes) == on_cpu
    again = [record.message for record in caplog.records if "trained again" in record.message]
    assert len(again) > 3
