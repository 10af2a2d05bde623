import pytest
import torch
from thread_group import on_ranks

from fedmef_dist.sums.exact_sum import FixedPoint
from fedmef_dist.sums.position_sum import PositionSum, choose_exchange

FORMAT = FixedPoint.for_weight(60)
CLIENTS = 6


def named(slot, size):
    """What a client names: one position of its own, and many that all share; all of them where there are 100."""
    shared = torch.arange(size) if size == 100 else torch.arange(CLIENTS, size // 2)
    positions = torch.cat([torch.tensor([slot]), shared]).unique()
    return positions, torch.linspace(-1, 1 + slot, len(positions))


def add_up(group, size, clients, has_values=True, has_votes=True):
    total = PositionSum(size, has_values=has_values, has_votes=has_votes, fixed_point=FORMAT, group=group)
    for slot in range(group.rank, clients, group.world_size):
        positions, values = named(slot, size)
        total.add(positions, values if has_values else None, 10)
    return total.reduce(60), total.exchange


@pytest.mark.parametrize("channels", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(("size", "clients"), [(100, 6), (300, 6), (300, 1), (300, 0)])
def test_sums_are_the_same_bits_on_any_number_of_ranks(size, clients, channels):
    alone, exchange = on_ranks(1, lambda group: add_up(group, size, clients, *channels))[0]
    assert exchange == "none"
    for world in (2, 3, 4):
        for sums, _ in on_ranks(world, lambda group: add_up(group, size, clients, *channels)):
            for ours, theirs in ((sums.total, alone.total), (sums.votes, alone.votes)):
                assert (ours is None) == (theirs is None)
                assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("size", "clients", "world", "exchange"),
    [(100, 6, 4, "dense"), (300, 6, 4, "union-bitmap"), (300, 0, 3, "index-value")],
)
def test_every_exchange_is_among_those_above(size, clients, world, exchange):
    assert {chosen for _, chosen in on_ranks(world, lambda group: add_up(group, size, clients))} == {exchange}


def test_averages_by_hand():
    def work(group):
        total = PositionSum(4, has_values=True, has_votes=True, fixed_point=FORMAT, group=group)
        total.add(torch.tensor([0, 2]), torch.tensor([1.0, 4.0]), 10)
        total.add(torch.tensor([2, 3]), torch.tensor([-2.0, 6.0]), 30)
        return total.reduce(40)

    sums = on_ranks(1, work)[0]
    # Position 2: (10 * 4 - 30 * 2) / 40 = -0.5 over all, and over its voters, who are all.
    assert sums.mean().tolist() == [0.25, 0, -0.5, 4.5]
    assert sums.mean_of_voters().tolist() == [1, 0, -0.5, 6]
    assert sums.votes.tolist() == [10, 0, 40, 30]
    assert sums.share().tolist() == [0.25, 0, 1, 0.75]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_who_names_no_positions_names_all_of_them(world):
    def work(group):
        total = PositionSum(3, has_values=True, has_votes=True, fixed_point=FORMAT, group=group)
        clients = [(None, [1.0, 2.0, 3.0], 10), (torch.tensor([1]), [6.0], 30), (None, [-1.0, 0.0, 4.0], 20)]
        for positions, values, weight in clients[group.rank :: group.world_size]:
            total.add(positions, torch.tensor(values), weight)
        return total.reduce(60)

    for sums in on_ranks(world, work):
        # (10 - 20) / 60, (20 + 180) / 60 and (30 + 80) / 60; position 1 has the votes of all.
        torch.testing.assert_close(sums.mean(), torch.tensor([-10, 200, 110]) / 60)
        assert sums.votes.tolist() == [30, 60, 30]
        torch.testing.assert_close(sums.mean_of_voters(), torch.tensor([-10 / 30, 200 / 60, 110 / 30]))


@pytest.mark.parametrize(
    ("longest", "channels", "world", "exchange"),
    [
        # Bytes over (world - 1), for 1,000 positions: pairs 16 * 1000, union 125 + 8 * 1000, dense 8 * 1000.
        (1000, 1, 2, "dense"),
        # Pairs 160, union 125 + 80, dense 8000.
        (10, 1, 2, "index-value"),
        # Pairs 1600, union 125 + 800, dense 8000.
        (100, 1, 2, "union-bitmap"),
        # Pairs 24 * 100, union 125 + 2 / 8 * 16 * 100 = 525, dense 4000.
        (100, 2, 8, "union-bitmap"),
        # Union 125 + 2 / 8 * 16 * 970 = 4005, dense 4000.
        (970, 2, 8, "dense"),
    ],
)
def test_the_cost_model_by_hand(longest, channels, world, exchange):
    assert choose_exchange(1000, longest, channels, world) == exchange
