"""Votes, posteriors and a draw for twelve weights, worked out by hand, and what must hold for any adjustment.

Active weights:   position  0    2     3    6    9     11
                  value     0.5 -0.1   0.9  0.2 -0.7   0.05
Share in round 1: 0.8 / 2 * (1 + cos(pi / 2)) = 0.4, so floor(0.4 * 6) = 2 weights are contested and kappa = 4.
Aggregated, the top four are 0, 3, 6 and 9. Client A (weight 3) finds the same, client B (weight 1) 2 instead of 6.
Of the gradients of inactive weights A's largest two are at 4 and 7, B's at 1 and 4.
Outcomes, gamma = 0.5:
    active    0, 3, 9: 0.5 + 0.5 = 1;  6: 0.5 + 0.5 * 0.75 = 0.875;  2: 0.5 * 0.25 = 0.125;  11: 0
    inactive  4: 0.25 + 0.5 = 0.75;  7: 0.25 + 0.5 * 0.75 = 0.625;  1: 0.25 + 0.5 * 0.25 = 0.375;  the others: 0.25
"""

import pytest
import torch
from made_methods import Seeded, adjust, positions, server_for, sums_of, vector
from torch import nn

from fedmef_dist.base.randomness import numpy_generator
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.fedrts import FedRts, FedRtsSettings
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05}
GRADIENT = {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 10: 0.1, 11: -5.0}
OUTCOMES = [1, 0.375, 0.125, 1, 0.75, 0.25, 0.875, 0.625, 0.25, 1, 0.25, 0]
KEPT = sums_of((3, dict.fromkeys([0, 3, 6, 9], 0)), (1, dict.fromkeys([0, 2, 3, 9], 0)))
WANTED = sums_of((3, dict.fromkeys([4, 7], 0)), (1, dict.fromkeys([1, 4], 0)))


def example(seed=5, **settings):
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    options = {"density": 2 / 3, "adjust_every": 1, "adjust_until": 2, "adjust_rate": 0.8} | settings
    method = FedRts(FedRtsSettings(**options), space, MethodContext(seed=seed))
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    return method, server


def test_a_client_votes_for_its_largest_weights_and_gradients():
    method, server = example()
    plan = method.plan(1, server.values)
    assert plan.adjusts
    assert plan.work.gradient_batches == 1
    uploads = plan.work.uploads(vector(GRADIENT))
    assert {name: upload.positions.tolist() for name, upload in uploads.items()} == {
        "kept": [0, 3, 6, 9],
        "wanted": [4, 7],
    }
    kept, wanted = plan.collections
    assert (kept.counts, kept.travels, kept.has_values, kept.has_votes) == ([4], False, False, True)
    assert (wanted.counts, wanted.travels, wanted.has_values, wanted.has_votes) == ([2], True, False, True)


def test_an_ordinary_round_asks_for_no_gradient():
    # In round 1 of 4 the share is 0.8 / 2 * (1 + cos(pi / 4)) = 0.68: floor(0.68 * 6) = 4 are contested.
    method, server = example(adjust_every=2, adjust_until=4)
    plan = method.plan(1, server.values)
    assert not plan.adjusts
    assert plan.work.gradient_batches == 0
    assert [wanted.counts for wanted in plan.collections] == [[2]]
    assert {name: upload.positions.tolist() for name, upload in plan.work.uploads(None).items()} == {"kept": [3, 9]}


def test_when_no_mask_is_drawn_any_more_nothing_is_collected():
    method, server = example()
    plan = method.plan(2, server.values)
    assert not plan.adjusts
    assert not plan.collections
    method.observe(plan, server.values, {})
    assert method.posterior.eq(1).all()


def test_an_adjusting_round_teaches_every_posterior():
    method, server = example()
    plan = method.plan(1, server.values)
    for times in (1, 2):
        method.observe(plan, server.values, {"kept": KEPT, "wanted": WANTED})
        outcomes = torch.tensor(OUTCOMES)
        expected = 1 + times * 10 * torch.stack([outcomes, 1 - outcomes])
        torch.testing.assert_close(method.posterior, expected)


@pytest.mark.parametrize(("gamma", "of_6", "of_2"), [(1.0, 1.0, 0.0), (0.0, 0.75, 0.25)])
def test_an_ordinary_round_teaches_those_of_active_weights(gamma, of_6, of_2):
    # In round 3 of 6 the share is 0.4 again.
    method, server = example(adjust_every=4, adjust_until=6, gamma=gamma, posterior_rate=2.0)
    plan = method.plan(3, server.values)
    assert plan.swap_counts == [2]
    method.observe(plan, server.values, {"kept": KEPT})
    learned = vector({0: 1, 3: 1, 9: 1, 6: of_6, 2: of_2})
    active = vector(WEIGHTS) != 0
    torch.testing.assert_close(method.posterior, 1 + 2 * torch.stack([learned, (1 - learned) * active]))


def test_the_largest_draws_are_kept():
    method, server = example()
    plan = method.plan(1, server.values)
    a, b = 1 + 10 * torch.tensor(OUTCOMES, dtype=torch.float64), 11 - 10 * torch.tensor(OUTCOMES, dtype=torch.float64)
    method.posterior = torch.stack([a, b]).float()
    draws = torch.from_numpy(numpy_generator(5, "beta", 1).beta(a.numpy(), b.numpy()))
    expected = sorted(draws.argsort(descending=True)[:6].tolist())
    adjust(server, plan, {})
    assert method.space.mask.index.tolist() == expected
    assert method.space.mask.version == 1
    survivors = {position: value for position, value in WEIGHTS.items() if position in expected}
    torch.testing.assert_close(server.values[:12], vector(survivors))


def test_certain_posteriors_leave_nothing_to_chance():
    for seed in range(5):
        method, server = example(seed)
        good = torch.isin(torch.arange(12), torch.tensor([1, 3, 4, 5, 10, 11]))
        method.posterior = torch.where(torch.stack([good, ~good]), 1e4, 1.0)
        adjust(server, method.plan(1, server.values), {})
        assert method.space.mask.index.tolist() == [1, 3, 4, 5, 10, 11]


def test_each_round_and_each_seed_draws_anew():
    masks = []
    for seed, number in [(5, 1), (5, 1), (5, 2), (6, 1)]:
        method, server = example(seed, adjust_until=9)
        masks.append(positions(method.next_mask(method.plan(number, server.values), server.values, {})))
    assert masks[0] == masks[1]
    assert masks[0] != masks[2]
    assert masks[0] != masks[3]


def test_the_posteriors_are_remembered():
    method, server = example()
    method.observe(method.plan(1, server.values), server.values, {"kept": KEPT, "wanted": WANTED})
    other, _ = example()
    other.restore({name: tensor.clone() for name, tensor in method.state().items()})
    assert torch.equal(other.posterior, method.posterior)
    with pytest.raises(ValueError, match="below"):
        other.restore({"posterior": torch.full((2, 12), 0.5)})
    with pytest.raises(ValueError, match="below Beta"):
        other.restore({"posterior": vector({0: 0.5}, 24).clamp(min=0.5).view(2, 12) + (torch.arange(12) > 0)})


def test_every_adjustment_keeps_every_layers_count_and_every_filters_floor():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8, 4))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    method = FedRts(FedRtsSettings(density=0.6, adjust_every=1, adjust_until=100), space, MethodContext())
    server = server_for(method)
    server.start(space.values, method.initial_mask(Seeded(0)))
    counts, masks = space.layer_counts(), set()
    for number in range(1, 30):
        server.values[: space.n_prunable] += 0.1 * torch.randn(space.n_prunable) * space.mask.active
        plan = method.plan(number, server.values)
        space.load(server.values)
        uploads = plan.work.uploads(torch.randn(space.n_prunable))
        assert space.layer_counts(Mask(torch.isin(torch.arange(space.n_prunable), uploads["kept"].positions))) == list(
            plan.collections[0].counts
        )
        sums = {
            name: sums_of((2, dict.fromkeys(upload.positions.tolist(), 0)), size=space.n_prunable)
            for name, upload in uploads.items()
        }
        method.observe(plan, server.values, sums)
        adjust(server, plan, sums)
        assert space.layer_counts() == counts
        assert space.mask.active[space.layers[1].start :].view(8, 9).sum(1).min() >= 2
        assert not server.values[: space.n_prunable][~space.mask.active].any()
        masks.add(space.mask.digest)
    assert len(masks) == 29
    torch.testing.assert_close(method.posterior.sum(0), torch.full((space.n_prunable,), 2.0 + 29 * 10))
