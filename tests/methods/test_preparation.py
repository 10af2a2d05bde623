from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_methods import messages_for, preparation_for
from thread_group import on_ranks
from tiny import alone, started, tiny
from torch import nn

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients import client as client_module
from fedmef_dist.clients.client import Client
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.optimizer import OptimizerSettings
from fedmef_dist.clients.plan import LocalClient, RoundPlan
from fedmef_dist.layers.random import Dropout
from fedmef_dist.methods.preparation import Preparation
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.encodings import Positions
from fedmef_dist.wire.ranges import prunable, small
from fedmef_dist.wire.traffic import Broadcast, whole

TWO, FIFTY = whole("two", small(2)), whole("fifty", small(50))


def preparation(group, samples=(1, 2, 5), weights=None, messages=None):
    """Clients 10, 11, ... with so many samples, which are their weights unless others are given."""
    sizes = np.array(samples, dtype=np.int64)
    clients = np.arange(10, 10 + len(sizes))
    messages = messages or messages_for(ParameterSpace(nn.Linear(2, 1, bias=False), ["weight"]))
    cohort = Cohort(clients, clients, sizes, sizes if weights is None else np.array(weights), 0, 0, 0)
    return Preparation(
        None, torch.zeros(4), cohort, lambda client, epochs: iter([(client, epochs)]), 7, group, messages
    )


def test_the_average_by_hand():
    found = {10: torch.tensor([8.0, 0.0]), 11: torch.tensor([-8.0, 4.0]), 12: torch.tensor([0.0, 8.0])}
    # (1 * 8 - 2 * 8) / 8 = -1 and (2 * 4 + 5 * 8) / 8 = 6; with every client alike 0 and 4.
    for weights, expected in ((None, [-1, 6]), ([1, 1, 1], [0, 4])):
        (average,) = on_ranks(1, lambda group, w=weights: preparation(group, weights=w).average(TWO, found.get))
        assert average.dtype == torch.float32
        assert average.tolist() == expected


@pytest.mark.parametrize("clients", [1, 3, 7])
def test_the_average_has_the_same_bits_on_any_number_of_ranks(clients):
    sizes = [3 + 5 * (client % 3) for client in range(clients)]
    asked = []

    def work(group):
        def measure(client):
            asked.append(client)
            return torch.randn(50, generator=torch.Generator().manual_seed(client))

        return preparation(group, sizes).average(FIFTY, measure)

    (alone,) = on_ranks(1, work)
    assert alone.abs().max() > 0.1
    for world in (2, 3, 4):  # more ranks than clients where there is one client
        asked.clear()
        averages = on_ranks(world, work)
        assert sorted(asked) == list(range(10, 10 + clients))
        assert len(averages) == world
        assert all(torch.equal(average, alone) for average in averages)


@pytest.mark.parametrize("insane", [float("nan"), float("inf"), 2.0**16])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_client_whose_numbers_do_not_fit_is_left_out_on_every_rank(insane, world):
    found = {10: torch.tensor([8.0, 0.0]), 11: torch.tensor([1.0, insane]), 12: torch.tensor([2.0, 6.0])}
    # Without client 11: (1 * 8 + 5 * 2) / 6 and (5 * 6) / 6.
    averages = on_ranks(world, lambda group: preparation(group).average(TWO, found.get))
    assert [average.tolist() for average in averages] == [[3, 5]] * world


@pytest.mark.parametrize("world", [1, 2, 4])
def test_where_nobodys_numbers_fit_every_rank_ends(world):
    refusals = on_ranks(
        world, lambda group: preparation(group).average(TWO, lambda client: torch.tensor([1.0, torch.nan]))
    )
    assert {type(refusal) for refusal in refusals} == {UserError}
    assert {str(refusal) for refusal in refusals} == {
        "none of 3 clients has numbers for the server that are finite and below 2^16\n"
        "where: the choice of the first mask\n"
        "mend: choose a lower optimizer.lr or another model.norm, or check the data"
    }


def test_where_nobody_answers_there_is_no_average():
    (refusal,) = on_ranks(1, lambda group: preparation(group, ()).average(TWO, lambda client: torch.zeros(2)))
    assert isinstance(refusal, UserError)
    assert str(refusal).startswith("no client answers the server before the first round\n")


def test_whose_batches_they_are():
    start, model = preparation(None), nn.Linear(2, 1)
    start.client = Client(model, ParameterSpace(model, ["weight"]), OptimizerSettings(), autocast=False)
    assert list(start.client_batches(11, 3)) == [(11, 3)]
    assert list(start.server_batches()) == [(None, 1)]


def test_what_layers_draw_for_a_client_depends_on_seed_and_client_alone():
    def trained(*clients, seed=0):
        model = nn.Sequential(nn.Linear(2, 16, bias=False), Dropout(0.5), nn.Linear(16, 2))
        space = ParameterSpace(model, ["0.weight"])
        space.values.fill_(1).cumsum_(0)
        start = preparation_for(model, space, [(torch.ones(4, 2), torch.tensor([0, 1, 1, 1]))] * 3, seed=seed)
        for client in clients:
            batches = start.client_batches(client)
            report = start.client.train(RoundPlan(0, start.values), batches, 1, 0.1, LocalClient(client))
        return report.values

    expected = trained(1)
    assert torch.equal(trained(0, 1), expected)  # another rank may have trained client 0
    assert not torch.equal(trained(2), expected)
    assert not torch.equal(trained(1, seed=1), expected)


def test_each_purpose_has_a_generator_of_its_own():
    start = preparation(None)
    draws = [start.generator(purpose).random() for purpose in ("mask", "mask", "scores")]
    assert draws[0] == draws[1] != draws[2]


def test_the_values_are_a_copy():
    start, values = preparation(None), torch.ones(3)
    copied = Preparation(None, values, start.cohort, None, 0, None, None)
    copied.values.zero_()
    assert values.tolist() == [1, 1, 1]


# --- what travels before the first round


def two_layers():
    """Two prunable layers of 6 and 4 weights, with 3 and 1 active, and two biases of the second."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2))
    space = ParameterSpace(model, ["0.weight", "1.weight"])
    space.values.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]))
    active = torch.tensor([True, False, True, True, False, False, False, True, False, False])
    return model, space, Mask(active, 1)


CLIENTS = [(torch.zeros(1, 3), torch.tensor([0])), (torch.zeros(3, 3), torch.tensor([0, 1, 1]))]


@pytest.mark.parametrize(("number", "up"), [("fp32", 4 * 10), ("fp16", 2 * 10), ("int8", 10 + 2 * 4)])
def test_what_clients_find_of_prunable_weights_comes_up_as_in_a_round(number, up):
    model, space, _ = two_layers()
    preparation = preparation_for(model, space, CLIENTS, {"uplink_values": number})
    gradient = torch.tensor([0.1] * 6 + [-0.3] * 4)
    average = preparation.average(whole("gradient", prunable(space)), lambda client: gradient * (1 + client))
    assert preparation.costs.up == 2 * up
    # (1 * 1 + 3 * 2) / 4 = 1.75. As int8 a value that is its layer's largest magnitude keeps its bits.
    sent = gradient.half().float() if number == "fp16" else gradient
    torch.testing.assert_close(average, 1.75 * sent, rtol=1e-6, atol=0)
    assert average.equal(1.75 * gradient) == (number != "fp16")


def test_numbers_of_a_methods_own_come_up_as_fp32_whatever_weights_are():
    model, space, _ = two_layers()
    preparation = preparation_for(model, space, CLIENTS, {"uplink_values": "int8"})
    found = torch.tensor([0.1, 1000.1])
    assert preparation.average(TWO, lambda client: found).equal(found)
    assert preparation.costs.up == 2 * 2 * 4


def test_a_rehearsal_counts_what_an_average_would_have():
    model, space, _ = two_layers()
    real, rehearsed = (preparation_for(model, space, CLIENTS, {"uplink_values": "fp16"}) for _ in range(2))
    wanted = whole("gradient", prunable(space))
    real.average(wanted, lambda client: torch.zeros(10))
    rehearsed.count_collection(wanted)
    assert real.costs == rehearsed.costs


def test_a_broadcast_is_decoded_and_paid_for_by_every_receiver():
    model, space, mask = two_layers()
    preparation = preparation_for(model, space, CLIENTS)
    received = preparation.send(Broadcast("candidate", prunable(space), mask.active, Positions()), receivers=3)
    assert received.tolist() == mask.active.float().tolist()
    # A tag and a bitmap of one byte for each layer.
    assert (preparation.costs.down, preparation.costs.up) == (3 * (2 + 2), 0)


def test_a_model_goes_down_with_its_mask_and_comes_up_with_the_clients_own():
    model, space, mask = two_layers()
    preparation = preparation_for(model, space, CLIENTS, {"uplink_values": "fp16"})
    preparation.send_model(mask, receivers=2)
    # 4 weights and 2 biases; a tag and a bitmap of one byte for each layer.
    assert (preparation.costs.down, preparation.costs.up) == (2 * (4 * 6 + 4), 0)
    received = preparation.return_model(space.values, mask)
    weights = torch.where(mask.active, space.values[:10].half().float(), 0)
    assert received.equal(torch.cat([weights, space.values[10:]]))
    assert preparation.costs.up == 0  # whoever has the client or not, every rank counts it with:
    preparation.count_returned_model(mask)
    assert preparation.costs.up == 2 * 4 + 4 * 2 + 4


def test_a_full_mask_goes_down_unsaid_but_a_client_says_that_its_own_is_full():
    model, space, _ = two_layers()
    preparation = preparation_for(model, space, CLIENTS)
    preparation.send_model(space.mask, receivers=1)
    assert preparation.costs.down == 4 * 12
    assert preparation.return_model(space.values, space.mask).equal(space.values)
    preparation.count_returned_model(space.mask)
    # A tag for each layer tells that it is dense.
    assert preparation.costs.up == 4 * 12 + 2


@pytest.mark.parametrize("name", ["flash", "prunefl"])
def test_training_before_round_1_waits_where_packed_activations_may_lack_room(monkeypatch, name):
    too_small = []

    @contextmanager
    def without_waiting(rooms):
        too_small.append(True)
        yield

    monkeypatch.setattr(Client, "may_lack_room", True)
    monkeypatch.setattr(client_module, "without_waiting", without_waiting)
    monkeypatch.setattr(client_module, "overflowed", lambda rooms: bool(too_small))
    started(tiny(method={"name": name, "density": 0.5}), alone())
    assert not too_small
