"""What methods whose clients prune, grow or vote make of parts of a mask, by hand.

Twelve weights, active: position  0    2     3    6    9     11
                        value     0.5 -0.1   0.9  0.2 -0.7   0.05
Client A (weight 1) is sent all of them, client B (weight 3) the largest three, 0, 3 and 9.
"""

import pytest
import torch
from made_methods import positions, server_for, sums_of, vector
from torch import nn

from fedmef_dist.clients.tiers import HELD
from fedmef_dist.methods.base import MethodContext, Received
from fedmef_dist.methods.registry import create_method, settings_of
from fedmef_dist.sparsity import Mask, ParameterSpace

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05}
PART = (0, 3, 9)


def example(name, **settings):
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    options = {"name": name, "density": 2 / 3} | settings
    method = create_method(settings_of(name)(**options), space, MethodContext(rounds=4))
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    method.counts = [6]
    return method, server


def part_of(method, plan):
    mask = torch.zeros(12, dtype=torch.bool)
    mask[list(PART)] = True
    return method.part(plan, Mask(mask, 1))


def aggregate(method, server, weights, held, name="weights"):
    plan = method.plan(1, server.values)
    sums = {name: weights, HELD: sums_of(*((weight, dict.fromkeys(own, 0)) for weight, own in held))}
    values, active = method.aggregate(plan, Received(torch.zeros(18), sums, 2))
    return values[:12], active


def named(values):
    return {place: round(float(values[place]), 4) for place in positions(values != 0)}


@pytest.mark.parametrize("name", ["feddst", "fedsgc"])
def test_what_no_client_was_sent_stays_and_what_all_have_pruned_goes(name):
    method, server = example(name, adjust_every=1, adjust_until=4)
    # B prunes 9 and grows 4; nobody else takes part.
    values, active = aggregate(method, server, sums_of((3, {0: 0.4, 3: 0.8, 4: 0.01})), [(3, [0, 3, 4, 9])])
    assert positions(active) == [0, 2, 3, 4, 6, 11]
    assert named(values) == {0: 0.4, 2: -0.1, 3: 0.8, 4: 0.01, 6: 0.2, 11: 0.05}


def test_a_union_that_is_too_small_takes_back_what_was_pruned():
    method, server = example("feddst", adjust_every=1, adjust_until=4)
    # B prunes 9 and grows 6, which the server's model has: five are left of six.
    values, active = aggregate(method, server, sums_of((3, {0: 0.4, 3: 0.8, 6: 0.01})), [(3, [0, 3, 6, 9])])
    assert positions(active) == [0, 2, 3, 6, 9, 11]
    assert named(values) == {0: 0.4, 2: -0.1, 3: 0.8, 6: 0.01, 9: -0.7, 11: 0.05}


def test_a_client_swaps_its_share_of_its_part():
    method, server = example("feddst", adjust_every=1, adjust_until=4, adjust_rate=0.8)
    plan = method.plan(1, server.values)
    part = part_of(method, plan)
    # 0.4 (1 + cos(pi / 4)) = 0.683 of six and of three.
    assert (plan.swap_counts, part.swap_counts) == ([4], [2])
    assert (plan.work.counts, part.work.counts) == ([4], [2])
    assert [wanted.counts for wanted in part.collections] == [[3]]


def test_fedsgc_counts_the_old_value_of_those_alone_that_were_sent_a_weight():
    method, server = example("fedsgc", adjust_every=1, adjust_until=4)
    a, b = (1, {0: 0.6, 2: 0.4, 3: 1.0, 6: 0.2, 9: -0.5, 1: 0.2}), (3, {0: 0.6, 3: 1.0, 4: 0.1})
    values, active = aggregate(method, server, sums_of(a, b), [(1, [0, 1, 2, 3, 6, 9, 11]), (3, [0, 3, 4, 9])])
    assert positions(active) == [0, 1, 2, 3, 4, 6, 9]  # 11 was A's alone, and A has pruned it
    # 2 counts as A has it; 9 as (-0.5 - 3 * 0.7) / 4; 1 and 4, which nobody else holds, whole.
    assert named(values) == {0: 0.6, 1: 0.2, 2: 0.4, 3: 1.0, 4: 0.1, 6: 0.2, 9: -0.65}


@pytest.mark.parametrize("name", ["sparsyfed", "flash"])
def test_a_pruned_weight_counts_as_0_with_those_alone_that_were_sent_it(name):
    options = {"variant": "jmwst", "initial_epochs": 0} if name == "flash" else {}
    method, server = example(name, **options)
    method.total = 3  # nothing has to be filled up
    sent = sums_of((1, {0: 1.0, 2: 0.5, 9: -0.4}), (3, {0: 2.0, 9: -0.8}))
    held = [(1, WEIGHTS), (3, PART)]
    values, _ = aggregate(method, server, sent, held)
    assert named(values) == {0: 1.75, 2: 0.5, 9: -0.7}
    # Without A nobody was sent 2, 6 and 11.
    values, active = aggregate(method, server, sums_of((3, {0: 2.0, 9: -0.8})), [(3, PART)])
    assert named(values) == {0: 2.0, 2: -0.1, 6: 0.2, 9: -0.8, 11: 0.05}
    assert positions(active) == [0, 2, 6, 9, 11]


def test_flash_fills_up_over_all_layers():
    method, server = example("flash", variant="jmwst", initial_epochs=0)
    method.total = 6
    values, active = aggregate(method, server, sums_of((3, {0: 2.0, 6: 0.1, 9: -0.8})), [(3, [0, 3, 6, 9])])
    assert positions(active) == [0, 2, 3, 6, 9, 11]
    assert named(values) == {0: 2.0, 2: -0.1, 3: 0.9, 6: 0.1, 9: -0.8, 11: 0.05}


def test_a_client_of_sparsyfed_sends_no_more_than_its_part():
    method, server = example("sparsyfed")
    method.total = 4
    plan = method.plan(1, server.values)
    assert (plan.work.total, part_of(method, plan).work.total) == (4, 3)


def test_only_those_vote_on_a_weight_that_hold_it():
    method, server = example("fedrts", adjust_every=1, adjust_until=2, adjust_rate=0.8)
    plan = method.plan(1, server.values)  # 0.4 of six are contested, two; of three one
    part = part_of(method, plan)
    space = method.space
    space.values[:12] = vector({0: 0.5, 3: 0.9, 9: -0.7})
    uploads = part.work.uploads(vector({4: -0.9, 7: 0.8, 1: 0.3}))
    assert {name: upload.positions.tolist() for name, upload in uploads.items()} == {"kept": [3, 9], "wanted": [4]}
    assert [wanted.counts for wanted in part.collections] == [[2], [1]]
    sums = {
        "kept": sums_of((1, dict.fromkeys([0, 3, 6, 9], 0)), (3, dict.fromkeys([3, 9], 0))),
        "wanted": sums_of((1, dict.fromkeys([4, 7], 0)), (3, {4: 0})),
        HELD: sums_of((1, dict.fromkeys([0, 2, 3, 6, 9], 0)), (3, dict.fromkeys(PART, 0))),
    }
    method.observe(plan, server.values, sums)
    outcome = (method.posterior[0] - 1) / 10
    # Aggregated, 0, 3, 6 and 9 are the top four. Of 0 a quarter of its holders; of 6 and 2 A alone; of 11 nobody.
    expected = vector({0: 0.625, 3: 1, 6: 1, 9: 1, 4: 0.75, 7: 0.375} | dict.fromkeys([1, 5, 8, 10, 11], 0.25))
    torch.testing.assert_close(outcome, expected, rtol=0, atol=1e-6)


def test_once_no_mask_will_be_drawn_a_part_has_no_votes_either():
    method, server = example("fedrts", adjust_every=1, adjust_until=2)
    plan = method.plan(2, server.values)
    assert part_of(method, plan) is plan
