"""One adjustment of twelve weights, worked out by hand.

position                   0    2     3    6    9     11     5    7     1    4    10
broadcast, theta_r         0.5 -0.1   0.9  0.2 -0.7   0.05   inactive
the round before           0.4 -0.2   1.0  0.3 -0.8   0.05   0.3 -0.2   0    0    0
direction d                +    +     -    -    +     0      -    +     0    0    0
trained                    0.4 -0.05  0.85 0.3 -0.7   0.02
gradient                                                     0.2  0.8   0.3 -0.9  0.1
Delta                      -    +     -    +    0     -      -    -     -    +    -

The share is 0.8 / 2 * (1 + cos(pi / 2)) = 0.4: floor(0.4 * 6) = 2 weights are swapped, and with lambda = 0.5 congruity
names the first of them. Against the direction go 0 and 6, and 6 is the smaller: it is pruned first, then 11, the
smallest of all. With it would go 5 alone: it is grown first, then 4, of largest gradient.

Then clients A (weight 1) and B (weight 3) send their weights, and the server averages them. Who does not keep a weight
counts with the old value:
    position                       0    1      2      3    4       5       6    7         9     11
    over A and B (weight 4)        0.7  0.09  -0.25   0.7  0.075   0.015   0.2  -0.0125  -0.9   not in the union
    over all clients (weight 8)    0.6  0.045 -0.175  0.8  0.0375  0.0075  0.2  -0.00625 -0.8   0.05
"""

import pytest
import torch
from made_methods import Seeded, adjust, messages_for, server_for, sums_of, vector
from pydantic import ValidationError
from torch import nn

from fedmef_dist.clients.plan import LocalClient
from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.fedsgc import FedSgc, FedSgcSettings, preferred_first
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.encodings import Signs
from fedmef_dist.wire.ranges import prunable

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05}
CLIENT_A = {0: 0.4, 3: 1.0, 4: 0.3, 6: 0.2, 7: -0.05, 9: -0.6}
CLIENT_B = {0: 0.8, 1: 0.12, 2: -0.3, 3: 0.6, 5: 0.02, 9: -1.0}
BEFORE = {0: 0.4, 2: -0.2, 3: 1.0, 6: 0.3, 9: -0.8, 11: 0.05, 5: 0.3, 7: -0.2}
TRAINED = {0: 0.4, 2: -0.05, 3: 0.85, 6: 0.3, 9: -0.7, 11: 0.02}
GRADIENT = {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 10: 0.1, 11: -5.0}
AMONG_TWO = {0: 0.7, 1: 0.09, 2: -0.25, 3: 0.7, 4: 0.075, 5: 0.015, 6: 0.2, 7: -0.0125, 9: -0.9}
AMONG_ALL = {0: 0.6, 1: 0.045, 2: -0.175, 3: 0.8, 4: 0.0375, 5: 0.0075, 6: 0.2, 7: -0.00625, 9: -0.8, 11: 0.05}


def example(**keys):
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    settings = FedSgcSettings(density=2 / 3, adjust_every=1, adjust_until=2, adjust_rate=0.8, **keys)
    method = FedSgc(settings, space, MethodContext(total_weight=8))
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    method.restore({"previous": vector(BEFORE)})
    return space, method, server


def test_the_direction():
    _, method, server = example()
    plan = method.plan(1, server.values)
    (sent,) = plan.broadcasts
    assert (sent.name, sent.over) == ("direction", prunable(method.space))
    assert isinstance(sent.encoding, Signs)
    assert sent.values.tolist() == [1, 0, 1, -1, 0, -1, -1, 1, 0, 1, 0, 0]
    assert method.plan(2, server.values).broadcasts == ()


def test_until_it_swaps_a_client_holds_what_it_was_sent_and_the_direction():
    _, method, server = example()
    # Six active weights; two bits for each of twelve fit into one number of 32.
    assert method.plan(1, server.values).work.held == 6 + 1
    assert method.plan(2, server.values).work.held == 0


@pytest.mark.parametrize(
    ("strength", "expected"),
    [
        (0.5, [0, 2, 3, 4, 5, 9]),
        (0.49, [0, 3, 4, 6, 7, 9]),  # floor(0.98) = 0: 2 and 11 go, 4 and 7 come
        (1.0, [2, 3, 4, 5, 9, 11]),  # both 0 and 6 go; only 5 is congruent, so 4 comes with it
    ],
)
def test_a_clients_swap(strength, expected):
    space, method, server = example(congruity_lambda=strength)
    plan = method.plan(1, server.values)
    space.load(server.values)
    plan.work.begin(LocalClient(0, {"direction": messages_for(space).broadcast(plan.broadcasts[0])}))
    space.values[:12] = vector(TRAINED)
    space.gradient[:12] = vector(GRADIENT)
    plan.work.prepare_step(1, 2, 0.1)
    # The weight of 0.02 at position 11 may stay; what has gone is 0.
    assert space.mask.index.tolist() == expected
    assert not space.values[:12][~space.mask.active].any()


@pytest.mark.parametrize(
    ("absent", "merged", "kept"),
    [("ignored", AMONG_TWO, [0, 1, 2, 3, 6, 9]), ("keep_old", AMONG_ALL, [0, 2, 3, 6, 9, 11])],
)
def test_the_servers_adjustment(absent, merged, kept):
    space, method, server = example(absent=absent)
    plan = method.plan(1, server.values)
    sums = {"weights": sums_of((1, CLIENT_A), (3, CLIENT_B))}
    server.update(plan, torch.zeros(6), sums, 2)
    assert space.mask.index.tolist() == sorted(merged)
    torch.testing.assert_close(server.values[:12], vector(merged), rtol=0, atol=1e-5)
    adjust(server, plan, sums)
    assert space.mask.index.tolist() == kept
    expected = vector({position: merged[position] for position in kept})
    torch.testing.assert_close(server.values[:12], expected, rtol=0, atol=1e-5)


def test_an_estimate_of_all_clients_below_those_that_took_part_counts_as_these():
    _, method, server = example(absent="keep_old")
    method.context = MethodContext(total_weight=2)
    # With weight 4 in all, position 11 keeps its old value.
    merged = method.merge(server.values, sums_of((1, CLIENT_A), (3, CLIENT_B)), None)
    torch.testing.assert_close(merged, vector(AMONG_TWO | {11: 0.05}), rtol=0, atol=1e-5)


def test_preferred_ones_come_first_as_far_as_there_are_any():
    space = ParameterSpace(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)), ["0.weight"])
    scores = torch.tensor([6.0, 5, 4, 3, 2, -torch.inf])
    preferred = torch.tensor([False, False, False, True, True, True])

    def chosen(count, share):
        return sorted(preferred_first(space, scores, preferred, [count], share).tolist())

    assert chosen(3, 0.0) == [0, 1, 2]
    assert chosen(3, 0.34) == [0, 1, 3]
    assert chosen(3, 0.67) == [0, 3, 4]
    assert chosen(4, 1.0) == [0, 1, 3, 4]  # position 5 cannot be chosen
    assert chosen(0, 1.0) == []


def test_the_first_round_has_no_direction_and_each_later_one_that_of_the_round_before():
    space, method, server = example()
    server.start(space.values, method.initial_mask(Seeded(0, space.values)))
    assert not method.plan(1, server.values).broadcasts[0].values.any()
    first = server.values[:12].clone()
    packed = space.pack(server.values) + 0.25
    server.update(method.plan(2, server.values), packed, {}, 1)
    assert torch.equal(method.state()["previous"], first)
    (direction,) = method.plan(1, server.values).broadcasts
    assert direction.values.tolist() == space.mask.active.to(torch.int8).tolist()


def test_a_round_that_does_not_count_leaves_the_memory_as_it_was():
    _, method, server = example()
    method.plan(1, server.values)
    torch.testing.assert_close(method.state()["previous"], vector(BEFORE))


def test_an_impossible_memory_is_refused():
    _, method, _ = example()
    with pytest.raises(ValueError, match="not finite"):
        method.restore({"previous": vector({3: float("nan")})})


def test_lambda_beyond_1_is_refused():
    with pytest.raises(ValidationError, match="congruity_lambda"):
        FedSgcSettings(congruity_lambda=1.1)
