"""Every method works with every normalisation, with and without activation pruning."""

import itertools

import pytest
from tiny import alone, started, tiny

from fedmef_dist.methods.registry import METHODS

ADJUSTING = {"density": 0.5, "adjust_every": 2, "adjust_until": 6}
DENSE = ("fedavg", "scaffold", "feddyn", "ditto")
KEYS = {**{name: {} for name in DENSE}, **{name: {"density": 0.5} for name in ("static", "sparsyfed")}}
KEYS["prunefl"] = {**ADJUSTING, "initial_adjustments": 2, "initial_steps": 2}  # not the thousand steps of its paper


@pytest.mark.parametrize("method", METHODS)
def test_a_method_with_every_normalisation(method, tmp_path):
    for norm, pruned in itertools.product(("nsconv", "batch", "group", "none"), (True, False)):
        config = tiny(
            method={"name": method, **KEYS.get(method, ADJUSTING)},
            model={"name": "resnet8", "width": 0.25, "norm": norm},
            sap={"enabled": pruned},
            optimizer={"lr": 0.02},
            server_optimizer={"name": "avgm", "lr": 0.5},
            wire={"uplink_values": "fp16"},
        )
        run = started(config, alone(), tmp_path)
        for run.round in (1, 2):
            metrics = run.play_round()
            assert metrics["clients/refused"] == 0, (norm, pruned)
            assert metrics["clients/trained"] == 3
        assert not run.server.values[: run.space.n_prunable][~run.space.mask.active].any()
