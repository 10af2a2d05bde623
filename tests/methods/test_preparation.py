import numpy as np
import pytest
import torch
from thread_group import on_ranks

from fedmef_dist.base.errors import UserError
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.methods.preparation import Preparation


def preparation(group, samples=(1, 2, 5), weights=None):
    """Clients 10, 11, ... with so many samples, which are their weights unless others are given."""
    sizes = np.array(samples, dtype=np.int64)
    clients = np.arange(10, 10 + len(sizes))
    cohort = Cohort(clients, clients, sizes, sizes if weights is None else np.array(weights), 0, 0, 0)
    return Preparation(None, torch.zeros(4), cohort, lambda client, epochs: iter([(client, epochs)]), 7, group)


def test_the_average_by_hand():
    found = {10: torch.tensor([8.0, 0.0]), 11: torch.tensor([-8.0, 4.0]), 12: torch.tensor([0.0, 8.0])}
    # (1 * 8 - 2 * 8) / 8 = -1 and (2 * 4 + 5 * 8) / 8 = 6; with every client alike 0 and 4.
    for weights, expected in ((None, [-1, 6]), ([1, 1, 1], [0, 4])):
        (average,) = on_ranks(1, lambda group, w=weights: preparation(group, weights=w).average(found.get))
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

        return preparation(group, sizes).average(measure)

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
def test_numbers_that_do_not_fit_are_refused_on_every_rank(insane, world):
    def measure(client):
        return torch.tensor([1.0, insane if client == 11 else 0.0])

    refusals = on_ranks(world, lambda group: preparation(group).average(measure))
    assert {type(refusal) for refusal in refusals} == {UserError}
    assert {str(refusal) for refusal in refusals} == {
        "the start model gives client 11 numbers that are not finite or beyond 2^16\n"
        "while the first mask was chosen\nchoose another model.norm, or check the data"
    }


def test_where_nobody_answers_there_is_no_average():
    (refusal,) = on_ranks(1, lambda group: preparation(group, ()).average(lambda client: torch.zeros(1)))
    assert isinstance(refusal, UserError)
    assert str(refusal).startswith("no client answers the server before the first round\n")


def test_whose_batches_they_are():
    start = preparation(None)
    assert list(start.client_batches(11, 3)) == [(11, 3)]
    assert list(start.server_batches()) == [(None, 1)]


def test_each_purpose_has_a_generator_of_its_own():
    start = preparation(None)
    draws = [start.generator(purpose).random() for purpose in ("mask", "mask", "scores")]
    assert draws[0] == draws[1] != draws[2]


def test_the_values_are_a_copy():
    start, values = preparation(None), torch.ones(3)
    copied = Preparation(None, values, start.cohort, None, 0, None)
    copied.values.zero_()
    assert values.tolist() == [1, 1, 1]
