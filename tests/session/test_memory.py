import json

import pytest
from tiny import alone, tiny

from fedmef_dist.base.errors import UserError
from fedmef_dist.session.session import simulate
from fedmef_dist.simulation.loop import Simulation


def test_the_devices_memory_is_told_again_where_the_masks_counts_have_changed(tmp_path):
    config = tiny(method={"name": "prunefl", "density": 0.5, "adjust_every": 2, "initial": "none"})
    summary = simulate(config, alone(), tmp_path, "auto").values
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = {row["round"]: row["memory/device_bytes"] for row in rows if "memory/device_bytes" in row}
    density = {row["round"]: row["sparsity/density"] for row in rows}
    assert list(told) == [1, 2, 4, 6]
    for before, now in [(1, 2), (2, 4), (4, 6)]:
        assert (told[now] > told[before]) == (density[now] > density[before])
    assert [row["round"] for row in rows if "memory/peak_bytes" in row] == [1]
    assert summary["memory/device_bytes"] == told[6]


def test_it_is_told_once_where_they_stay(tmp_path):
    simulate(tiny(), alone(), tmp_path, "auto")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "memory/device_bytes" in row] == [1]


def test_in_bfloat16_activations_take_about_half(tmp_path):
    def bytes_of(precision):
        config = tiny(
            model={"name": "resnet8", "width": 0.5}, runtime={"precision": precision}, federation={"rounds": 1}
        )
        return simulate(config, alone(), tmp_path / precision, "auto").values["memory/activation_bytes"]

    assert 0.5 < bytes_of("bf16") / bytes_of("fp32") < 0.6


def test_a_lower_tier_needs_less_memory_of_activations_too_where_they_follow_its_weights(tmp_path):
    saved = {}
    for name in ("feddst", "sparsyfed"):
        federation = {"tiers": [{"share": 0.5, "density": 0.3}], "rounds": 1}
        simulate(tiny(method={"name": name, "density": 0.5}, federation=federation), alone(), tmp_path / name, "auto")
        (row,) = rows_of(tmp_path / name)
        assert row["tier1/device_bytes"] == row["memory/device_bytes"]
        fewer = row["tier1/device_bytes"] - row["tier0/device_bytes"]
        saved[name] = fewer / (row["sparsity/density"] - 0.3)  # the next round's masks
    assert saved["sparsyfed"] > 1.3 * saved["feddst"] > 0


def rows_of(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_what_pruning_drops_is_told_with_each_evaluation(tmp_path):
    changes = {"evaluation": {"every": 2}, "federation": {"rounds": 3}}
    pruned = simulate(tiny(sap={"prune_ratio": 0.9}, **changes), alone(), tmp_path / "pruned", "auto").values
    told = {row["round"]: row["sap/dropped_mass"] for row in rows_of(tmp_path / "pruned") if "sap/dropped_mass" in row}
    assert list(told) == [2, 3]
    assert all(0 < mass < 1 for mass in told.values())
    simulate(tiny(sap={"prune_ratio": 0}, **changes), alone(), tmp_path / "exact", "auto")
    assert not any("sap/dropped_mass" in row for row in rows_of(tmp_path / "exact"))
    assert "model/digest" in pruned


def test_exact_forms_and_exact_plans_change_no_bit_of_a_run(tmp_path):
    def digest(name, **changes):
        # A method whose rounds are all alike, so that a budget leaves no room for gradients of all parameters.
        method = {"name": "static", "density": 0.3}
        model = {"name": "resnet8", "norm": "nsconv", **changes.pop("model", {})}
        sap = {"enabled": True, "prune_ratio": 0, **changes.pop("sap", {})}
        config = tiny(method=method, model=model, federation={"rounds": 2}, sap=sap, **changes)
        return simulate(config, alone(), tmp_path / name, "auto").values

    plain = digest("plain", sap={"enabled": False})
    packed = digest("packed")
    recomputed = digest("recomputed", model={"recompute": "blocks"})
    assert plain["model/digest"] == packed["model/digest"] == recomputed["model/digest"]
    assert recomputed["memory/activation_bytes"] < packed["memory/activation_bytes"] < plain["memory/activation_bytes"]
    assert recomputed["flops/total"] > packed["flops/total"]
    budget = (packed["memory/peak_bytes"] + plain["memory/peak_bytes"]) // 2
    planned = digest("planned", device={"budget": str(budget)})
    assert planned["model/digest"] == plain["model/digest"]
    assert planned["memory/peak_bytes"] <= 1.03 * budget


def test_a_budget_that_no_plan_meets_is_refused(tmp_path):
    with pytest.raises(UserError, match="no plan fits"):
        simulate(tiny(device={"budget": "1kB"}), alone(), tmp_path, "auto")


@pytest.mark.parametrize("name", ["fedmef", "sparsyfed"])  # of the latter a step is measured again as masks change
def test_a_run_that_goes_on_tells_the_same_memory_as_an_undisturbed_one(tmp_path, monkeypatch, name):
    config = tiny(
        method={"name": name, "density": 0.5}, checkpoint={"every": 4}, evaluation={"every": 3}, optimizer={"lr": 1.0}
    )
    whole = simulate(config, alone(), tmp_path / "whole", "auto").values
    play = Simulation.play_round

    def killed(self):
        if self.round == 5:
            raise RuntimeError("killed")
        return play(self)

    with monkeypatch.context() as patch:
        patch.setattr(Simulation, "play_round", killed)
        with pytest.raises(RuntimeError, match="killed"):
            simulate(config, alone(), tmp_path / "resumed", "auto")
    resumed = simulate(config, alone(), tmp_path / "resumed", "auto").values
    told = [
        [{key: value for key, value in row.items() if key.startswith("memory/")} for row in rows_of(tmp_path / run)]
        for run in ("whole", "resumed")
    ]
    assert told[0] == told[1]
    assert whole["memory/activation_bytes"] == resumed["memory/activation_bytes"]
    assert whole["memory/peak_bytes"] == resumed["memory/peak_bytes"]


def test_a_fork_whose_settings_take_other_memory_measures_for_itself(tmp_path):
    simulate(tiny(federation={"rounds": 2}), alone(), tmp_path / "parent", "auto")
    fork = tiny(fork=str(tmp_path / "parent"), federation={"rounds": 3}, sap={"prune_ratio": 0.9})
    simulate(fork, alone(), tmp_path / "fork", "auto")
    first, _, last = (row.get("memory/activation_bytes") for row in rows_of(tmp_path / "fork"))
    assert last < first
