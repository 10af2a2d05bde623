"""What a client keeps of twelve weights in two layers, and what two clients' weights average to, by hand.

Layer 0 has positions 0 to 7, layer 1 has 8 to 11. Weights:
    position  0    1    2    3    4    5    6    7    8     9     10    11
    value     0.9  -.8  0.1  0    0    0    0    0    0.05  -.02  0     0
Of all together the three largest are 0, 1 and 2; but layer 1 keeps its largest, 8.
"""

import pytest
import torch
from made_methods import FORMAT, positions, server_for, sums_of, vector
from pydantic import ValidationError
from tiny import Recorder, alone, started, tiny
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.config import load_config
from fedmef_dist.layers.activation_pruning import PrunedConv2d
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.sparsyfed import PrunedUpload, SparsyFed, SparsyFedSettings
from fedmef_dist.simulation.forecast import foretell
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.position_sum import Sums

WEIGHTS = {0: 0.9, 1: -0.8, 2: 0.1, 8: 0.05, 9: -0.02}
METHOD = {"name": "sparsyfed", "density": 0.5}


def example(density=0.5):
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    space.values[:12] = vector(WEIGHTS)
    return SparsyFed(SparsyFedSettings(density=density), space, MethodContext())


def test_a_client_keeps_the_largest_of_all_layers():
    method = example()
    upload = PrunedUpload(method.space, 3).uploads(None)["weights"]
    assert upload.positions.tolist() == [0, 1, 8]
    torch.testing.assert_close(upload.values, torch.tensor([0.9, -0.8, 0.05]))
    # 18 parameters, 6 of them never pruned: half of all leaves 3.
    assert method.total == 3
    # What is inactive is not kept, not even if nothing else is left.
    method.space.set_mask(Mask(vector({0: 1, 3: 1, 8: 1, 9: 1}) != 0))
    method.space.values[3] = 0
    assert PrunedUpload(method.space, 4).uploads(None)["weights"].positions.tolist() == [0, 3, 8, 9]


def test_the_server_averages_plainly_over_the_union():
    method = example()
    server = server_for(method)
    plan = method.plan(1, server.values)
    assert not plan.returns_weights
    assert plan.collections[0].varies
    assert sum(plan.collections[0].counts) == 3
    sums = {"weights": sums_of((1, {0: 1.0, 1: -0.5, 8: 0.25}), (3, {0: 0.5, 2: 0.5, 9: 0.25}))}
    values, active = method.aggregate(plan, Received(server.values, sums, 2))
    # Who does not keep a weight counts with 0: (1 + 3 / 2) / 4, -1/2 / 4, 3/2 / 4, ...
    torch.testing.assert_close(values[:12], vector({0: 0.625, 1: -0.125, 2: 0.375, 8: 0.0625, 9: 0.1875}))
    assert positions(active) == [0, 1, 2, 8, 9]
    method.space.set_mask(Mask(active, 1))
    assert method.aggregate(plan, Received(values, sums, 2))[1] is None


def test_masks_settle_and_the_ledgers_follow(tmp_path):
    run, recorder = started(tiny(method=METHOD), alone(), tmp_path), Recorder()
    assert isinstance(run.model[3], PrunedConv2d)
    assert run.model[3].alpha == 1.25
    run.run(recorder)
    space, rows = run.space, recorder.rounds
    assert [row["clients/trained"] for row in rows] == [3] * len(rows)
    # Dense at first; then the union of three clients, whose weights that are 0 stay 0.
    densities = [row["sparsity/density"] for row in rows]
    assert 0.5 <= densities[-1] <= densities[0] < 1
    assert densities == sorted(densities, reverse=True)
    assert rows[1]["flops/train"] < rows[0]["flops/train"]
    # Each client sends as many weights; the lengths of positions differ with where they are.
    rest, kept = 4 * (space.total - space.n_prunable), round(0.5 * space.n_parameters) - space.n_dense
    for row in rows:
        assert 3 * (rest + 4 * kept) < row["wire/up_bytes"] < 3 * (rest + 4 * kept + space.n_prunable // 4 + 50)
    shares = {layer.name: count / layer.size for layer, count in zip(space.layers, space.layer_counts(), strict=True)}
    for name, share in shares.items():
        owner = space_owner(run.model, name)
        assert owner.pruning.ratio == pytest.approx(1 - share if owner.pruning.follows_weights else 0.0)
    assert sum(space_owner(run.model, name).pruning.follows_weights for name in shares) == len(shares) - 1


def test_without_a_power_nothing_grows_either(tmp_path):
    run, recorder = started(tiny(method=METHOD | {"alpha": 1}), alone(), tmp_path), Recorder()
    run.run(recorder)
    assert [row["sparsity/changed"] for row in recorder.rounds] == [0] * len(recorder.rounds)
    densities = [row["sparsity/density"] for row in recorder.rounds]
    assert densities == sorted(densities, reverse=True)
    assert densities[0] > densities[-1] == pytest.approx(0.5, abs=1e-3)


def space_owner(model, name):
    return model.get_submodule(name.removesuffix(".weight"))


def test_it_starts_as_the_stock_network_does():
    powered, plain = (started(tiny(method=METHOD | {"alpha": alpha}), alone()) for alpha in (1.25, 1.0))
    x = torch.randn(2, *powered.dataset.shape)
    with torch.no_grad():
        torch.testing.assert_close(powered.model.eval()(x), plain.model.eval()(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(powered.server.values, plain.server.values)


def test_a_plan_foresees_sparse_rounds():
    run = started(tiny(method=METHOD), alone())
    first, *later = foretell(run, 1).rounds
    assert all(one.down_bytes < first.down_bytes for one in later)
    assert run.space.density == pytest.approx(0.5, abs=1e-3)


def test_settings():
    with pytest.raises(ValidationError):
        SparsyFedSettings(alpha=0.9)
    with pytest.raises(UserError, match="cannot be reached"):
        example(density=0.2)
    config = load_config("configs/quickstart.yaml", ["method.name=sparsyfed"])
    assert config.resolved_sap.enabled
    assert config.resolved_sap.share == "weights"
    assert (config.norm, config.weight_power) == ("batch", 1.25)
    fedmef = load_config("configs/quickstart.yaml", [])
    assert (fedmef.resolved_sap.share, fedmef.weight_power) == ("fixed", 1.0)


def test_a_mean_of_0_is_inactive():
    method = example()
    sums = {"weights": Sums(FORMAT.encode(vector({0: 1.0, 8: 1.0}), 1), None, 1, FORMAT)}
    _, active = method.aggregate(method.plan(1, method.space.values), Received(method.space.values, sums, 1))
    assert positions(active) == [0, 8]
