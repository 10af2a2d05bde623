"""One adjustment of twelve weights by two clients, worked out by hand.

Active weights:   position  0    2     3    6    9     11
                  value     0.5 -0.1   0.9  0.2 -0.7   0.05
Share in round 1: 0.8 / 2 * (1 + cos(pi / 2)) = 0.4, so a client prunes and grows floor(0.4 * 6) = 2 weights.
Client A prunes 2 and 11, and grows 4 and 7. B's training has brought 6 to 0.02: it prunes 6 and 11, and grows 1 and 5.

Uploads after training, A of weight 1, B of weight 3, and what the server makes of them:
    position    0    1     2     3    4    5     6    7      9
    A           0.4             1.0  0.3        0.2  -0.05  -0.6
    B           0.8  0.12 -0.3  0.6       0.02              -1.0
    merged      0.7  0.12 -0.3  0.7  0.3  0.02  0.2  -0.05  -0.9
Nobody keeps 11. Of the nine of the union the six largest stay: 0, 2, 3, 4, 6, 9.
"""

import pytest
import torch
from made_methods import adjust, server_for, sums_of, vector
from pydantic import ValidationError
from torch import nn

from fedmef_dist.methods.base import MethodContext
from fedmef_dist.methods.feddst import FedDst, FedDstSettings
from fedmef_dist.sparsity import ParameterSpace

WEIGHTS = {0: 0.5, 2: -0.1, 3: 0.9, 6: 0.2, 9: -0.7, 11: 0.05}
CLIENT_A = {0: 0.4, 3: 1.0, 4: 0.3, 6: 0.2, 7: -0.05, 9: -0.6}
CLIENT_B = {0: 0.8, 1: 0.12, 2: -0.3, 3: 0.6, 5: 0.02, 9: -1.0}
MERGED = {0: 0.7, 1: 0.12, 2: -0.3, 3: 0.7, 4: 0.3, 5: 0.02, 6: 0.2, 7: -0.05, 9: -0.9}


@pytest.fixture
def example():
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2, bias=False), nn.Linear(2, 2)), ["0.weight"])
    settings = FedDstSettings(density=2 / 3, adjust_every=1, adjust_until=2, adjust_rate=0.8)
    method = FedDst(settings, space, MethodContext())
    space.values[:12] = vector(WEIGHTS)
    server = server_for(method)
    server.start(space.values, vector(WEIGHTS) != 0)
    return space, method, server


def test_the_clients_swaps(example):
    space, method, server = example
    plan = method.plan(1, server.values)
    assert (method.counts, plan.swap_counts) == ([6], [2])
    start = space.mask
    for changed, gradient, expected in [
        ({}, {0: 5.0, 1: 0.3, 4: -0.9, 5: 0.2, 7: 0.8, 11: -5.0}, [0, 3, 4, 6, 7, 9]),
        ({6: 0.02}, {1: 0.9, 4: 0.1, 5: -0.8, 6: 7.0}, [0, 1, 2, 3, 5, 9]),
    ]:
        space.set_mask(start)
        space.load(server.values)
        for position, value in changed.items():
            space.values[position] = value
        space.gradient[:12] = vector(gradient)
        plan.work.prepare_step(0, 2, 0.1)
        assert space.mask is start  # half of two steps are to be made first
        plan.work.prepare_step(1, 2, 0.1)
        assert space.mask.index.tolist() == expected
        assert not space.values[:12][~space.mask.active].any()


def test_the_servers_adjustment(example):
    space, method, server = example
    plan = method.plan(1, server.values)
    sums = {"weights": sums_of((1, CLIENT_A), (3, CLIENT_B))}
    tail = torch.arange(6.0)
    server.update(plan, tail, sums, 2)
    assert space.mask.index.tolist() == sorted(MERGED)
    torch.testing.assert_close(server.values, torch.cat([vector(MERGED), tail]), rtol=0, atol=1e-5)
    seen = adjust(server, plan, sums, lambda: server.values[:12].clone())
    assert space.mask.index.tolist() == [0, 2, 3, 4, 6, 9]
    kept = vector({position: MERGED[position] for position in (0, 2, 3, 4, 6, 9)})
    torch.testing.assert_close(server.values[:12], kept, rtol=0, atol=1e-5)
    assert torch.equal(seen["after_prune"], seen["after_grow"])


def test_the_second_half_of_the_rounds_is_left_alone_unless_said_otherwise():
    space = ParameterSpace(nn.Sequential(nn.Linear(6, 2)), ["0.weight"])

    def adjusting(**keys):
        method = FedDst(FedDstSettings(density=0.7, **keys), space, MethodContext(rounds=60))
        return [number for number in range(1, 61) if method.plan(number, space.values).adjusts]

    assert adjusting() == [10, 20]  # in round 30 the share has reached 0
    assert adjusting(adjust_until=51) == [10, 20, 30, 40, 50]
    assert FedDst(FedDstSettings(density=0.7), space, MethodContext(rounds=1)).plan(1, space.values).adjusts is False


@pytest.mark.parametrize("key", ["local_share", "adjust_rate"])
def test_shares_beyond_1_are_refused(key):
    with pytest.raises(ValidationError, match=key):
        FedDstSettings(**{key: 1.5})
