import threading

import pytest
import torch

from fedmef_dist.cluster.thread_ranks import ThreadRanks

WORLD = range(3)


def on_three(work):
    """What `work(group)` gives on each of three ranks."""
    ranks = ThreadRanks(3)
    return ranks.run(ranks.groups, work)


def test_the_ranks_know_their_places():
    places = on_three(lambda group: (group.rank, group.world_size, group.device.type, threading.current_thread().name))
    assert places == [(rank, 3, "cpu", f"rank {rank}") for rank in WORLD]


def test_a_sum_by_hand():
    def work(group):
        own = torch.tensor([1 + group.rank, 10 * group.rank])
        group.all_reduce(own)
        return own.tolist()

    assert on_three(work) == [[1 + 2 + 3, 0 + 10 + 20]] * 3


def test_a_broadcast_by_hand():
    def work(group):
        own = torch.tensor([group.rank / 2])
        group.broadcast(own, 2)
        return own.tolist()

    assert on_three(work) == [[1.0]] * 3


def test_what_is_gathered_by_hand():
    found = on_three(lambda group: group.all_gather(torch.tensor([group.rank, -group.rank])).tolist())
    assert found == [[[0, 0], [1, -1], [2, -2]]] * 3


def test_collectives_in_a_row_do_not_mix_and_nobody_sees_what_another_does_to_its_own():
    def work(group):
        found = []
        for number in range(50):
            own = torch.tensor([number * (1 + group.rank)])
            gathered = group.all_gather(own)
            own.fill_(-1)
            group.barrier()
            found.append(gathered.flatten().tolist())
        return found

    assert on_three(work) == [[[number, 2 * number, 3 * number] for number in range(50)]] * 3


def test_each_rank_gets_its_item_and_results_are_in_the_order_of_the_ranks():
    assert ThreadRanks(3).run(["a", "b", "c"], str.upper) == ["A", "B", "C"]


def test_one_rank_alone_needs_nobody():
    ranks = ThreadRanks(1)
    (found,) = ranks.run(ranks.groups, lambda group: group.all_gather(torch.tensor([7])).tolist())
    assert found == [[7]]


@pytest.mark.parametrize("failing", WORLD)
def test_the_error_of_one_rank_wakes_the_others_and_is_raised(failing):
    woken = []

    def work(group):
        if group.rank == failing:
            raise LookupError(f"rank {group.rank} has no data")
        try:
            group.barrier()
        except threading.BrokenBarrierError:
            woken.append(group.rank)
            raise

    with pytest.raises(LookupError, match=f"rank {failing} has no data"):
        on_three(work)
    assert sorted(woken) == [rank for rank in WORLD if rank != failing]


def test_of_several_errors_the_first_ranks_is_raised():
    def work(group):
        raise ValueError(str(group.rank))

    with pytest.raises(ValueError, match="0"):
        on_three(work)
