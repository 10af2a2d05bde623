import hashlib

import numpy as np
import pytest
import torch
from made_methods import adjust, sums_of
from tiny import alone
from torch import nn

from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.methods.base import Method, MethodContext
from fedmef_dist.methods.server_optimizer import ServerOptimizer, ServerOptimizerSettings
from fedmef_dist.simulation.server import Server
from fedmef_dist.sparsity import Mask, ParameterSpace


class Chosen(Method):
    """Prunes position 0, grows position 5 at 0.25."""

    def initial_mask(self, preparation):
        raise AssertionError("the tests start the server themselves")

    def next_mask(self, plan, values, sums):
        return self.space.mask.swapped(torch.tensor([0]), torch.tensor([5]))

    def grown_values(self, values, grown):
        assert values[0] == 0
        return torch.full((grown.numel(),), 0.25)


def network():
    """Six prunable weights, two biases, two running statistics of each kind."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    return ParameterSpace(model, ["0.weight"])


def server_of(space, **optimizer_keys):
    optimizer = ServerOptimizer(ServerOptimizerSettings(**optimizer_keys), space)
    return Server(space, Chosen(None, space, MethodContext()), optimizer, alone())


ACTIVE = torch.tensor([True, True, False, True, False, False])
VALUES = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])


@pytest.fixture
def server():
    space = network()
    space.values.copy_(VALUES)
    server = server_of(space)
    server.start(space.values, ACTIVE)
    return server


def test_the_first_mask_empties_what_it_leaves_out(server):
    assert server.values.tolist() == [1, 2, 0, 4, 0, 0, 7, 8, 9, 10, 11, 12]
    assert server.space.mask.active.tolist() == ACTIVE.tolist()


def test_training_does_not_touch_the_servers_state(server):
    server.space.values.fill_(100)
    assert server.values.tolist() == [1, 2, 0, 4, 0, 0, 7, 8, 9, 10, 11, 12]


def test_the_average_is_unpacked_around_the_mask(server):
    packed = torch.arange(9.0) + 20
    server.update(RoundPlan(1, server.values), packed, {}, 1)
    assert server.values.tolist() == [20, 21, 0, 22, 0, 0, 23, 24, 25, 26, 27, 28]
    packed.zero_()
    assert server.values[0] == 20


def test_without_inactive_weights_the_average_is_the_state():
    space = network()
    server = server_of(space)
    server.start(space.values, torch.ones(6, dtype=torch.bool))
    packed = VALUES.clone()
    server.update(RoundPlan(1, server.values), packed, {}, 1)
    packed.zero_()
    assert torch.equal(server.values, VALUES)


class Merging(Chosen):
    """What the clients keep is the state, and its union the mask."""

    def aggregate(self, plan, received):
        weights = received.sums["weights"]
        rest = received.average[self.space.n_prunable :]
        return torch.cat([weights.mean_of_voters(), rest]), weights.votes > 0


def merging(server):
    """The plan of a round in which clients have masks of their own, and the server that merges them."""
    server.method = Merging(None, server.space, MethodContext())
    return RoundPlan(1, server.values, returns_weights=False)


# Client of weight 1 keeps 0, 1, 5; client of weight 3 keeps 1, 2, 4; nobody keeps 3.
OWN_MASKS = {"weights": sums_of((1, {0: 8.0, 1: 4.0, 5: -2.0}), (3, {1: 8.0, 2: 1.0, 4: 0.0}), size=6)}
DENSE = torch.arange(6.0) + 20


def test_clients_with_masks_of_their_own_are_averaged_over_those_who_keep_a_weight(server):
    plan = merging(server)
    server.update(plan, DENSE, OWN_MASKS, 2)
    # Position 1: (1 * 4 + 3 * 8) / 4 = 7. What the server sent and nobody kept is gone.
    assert server.values.tolist() == [8, 7, 1, 0, 0, -2, 20, 21, 22, 23, 24, 25]
    assert server.space.mask.index.tolist() == [0, 1, 2, 4, 5]
    assert server.space.mask.active.tolist() == [1, 1, 1, 0, 1, 1]
    assert server.space.mask.version == 1
    assert server.space.values.tolist() == server.values.tolist()
    adjust(server, plan, OWN_MASKS)
    assert server.values[:6].tolist() == [0, 7, 1, 0, 0, -2]
    assert server.space.mask.version == 2


def test_the_union_leaves_out_what_no_client_keeps(server):
    server.update(merging(server), DENSE, {"weights": sums_of((2, {1: 3.0, 4: 5.0}), size=6)}, 1)
    assert server.space.mask.index.tolist() == [1, 4]
    assert server.values[:6].tolist() == [0, 3, 0, 0, 5, 0]


def test_a_server_optimizer_steps_towards_the_merged_weights():
    space = network()
    space.values.copy_(VALUES)
    server = server_of(space, name="avgm", lr=0.5)
    server.start(space.values, ACTIVE)
    server.update(merging(server), DENSE, OWN_MASKS, 2)
    # Half the way from [1, 2, 0, 4, 0, 0] and [7, 8], but for what nobody keeps; statistics are taken as they are.
    assert server.values.tolist() == [4.5, 4.5, 0.5, 0, 0, -1, 13.5, 14.5, 22, 23, 24, 25]


def test_the_method_observes_the_state_under_the_union(server):
    seen, plan = [], merging(server)
    server.method.observe = lambda plan, values, sums: seen.append((plan, values.tolist(), sums, server.space.mask))
    server.update(plan, DENSE, OWN_MASKS, 2)
    assert seen == [(plan, server.values.tolist(), OWN_MASKS, server.space.mask)]


def test_the_method_gets_what_the_clients_sent_and_how_many_count(server):
    seen = []

    def aggregate(plan, received):
        seen.append((plan, received.average.tolist(), received.sums, received.clients, server.space.mask.version))
        return received.average, None

    server.method.aggregate = aggregate
    # Without the prunable weights the state is what lies behind them; they are 0.
    for plan, packed, average in [
        (RoundPlan(1, server.values), torch.arange(9.0), [0, 1, 0, 2, 0, 0, 3, 4, 5, 6, 7, 8]),
        (RoundPlan(1, server.values, returns_weights=False), DENSE, [0] * 6 + DENSE.tolist()),
    ]:
        server.update(plan, packed, OWN_MASKS, 7)
        assert seen.pop() == (plan, average, OWN_MASKS, 7, 0)
        assert server.values.tolist() == average


def test_an_adjustment_step_by_step(server):
    seen = adjust(server, RoundPlan(1, server.values), {}, lambda: server.values[:6].tolist())
    assert list(seen.items()) == [("after_prune", [0, 2, 0, 4, 0, 0]), ("after_grow", [0, 2, 0, 4, 0, 0.25])]
    assert server.values[6:].tolist() == [7, 8, 9, 10, 11, 12]
    assert server.space.mask.index.tolist() == [1, 3, 5]
    assert server.space.mask.version == 1
    assert server.space.mask.active.tolist() == [0, 1, 0, 1, 0, 1]


class SecondRank:
    """A group of two ranks seen from the second; what rank 0 broadcasts is given."""

    rank, world_size = 1, 2

    def __init__(self, sent):
        self.sent = sent

    def broadcast(self, tensor):
        tensor.copy_(self.sent)


def test_the_other_ranks_take_the_mask_of_rank_0(server):
    server.method.next_mask = None  # they do not choose
    bits = np.packbits([False, True, True, True, False, False], bitorder="little")
    server.group = SecondRank(torch.from_numpy(bits))
    adjust(server, RoundPlan(1, server.values), {})
    assert server.space.mask.index.tolist() == [1, 2, 3]
    assert server.space.mask.version == 1
    assert server.values[:6].tolist() == [0, 2, 0.25, 4, 0, 0]


def test_the_digest_by_hand(server):
    state = np.array([1, 2, 0, 4, 0, 0, 7, 8, 9, 10, 11, 12], dtype="<f4").tobytes()
    mask = hashlib.sha256(bytes([0b001011])).digest()
    assert server.digest() == hashlib.sha256(state + mask).hexdigest()


def test_the_digest_tells_states_and_masks_apart(server):
    digests = {server.digest()}
    server.values[11] = torch.nextafter(server.values[11], torch.tensor(100.0))
    digests.add(server.digest())
    # An active weight of exactly 0 is another state than an inactive one.
    server.set_state(server.values.clone(), Mask(ACTIVE | torch.tensor([False] * 5 + [True])))
    digests.add(server.digest())
    assert len(digests) == 3
