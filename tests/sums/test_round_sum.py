import numpy as np
import pytest
import torch
from thread_group import ThreadLevel, on_ranks

from fedmef_dist.cluster.environment import MOST_RANKS
from fedmef_dist.cluster.group import RuntimeSettings
from fedmef_dist.cluster.lone_rank import open_lone_group
from fedmef_dist.cluster.short_sum import all_reduce_short
from fedmef_dist.sums.round_sum import RanksOutOfStepError, RoundSum

DIGEST = bytes(range(32))


def client(slot):
    generator = torch.Generator().manual_seed(slot)
    return torch.randn(40, generator=generator), 10 + slot


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_result_is_the_same_on_any_number_of_ranks(world):
    def work(group):
        total = RoundSum(40, 6, sum(10 + slot for slot in range(6)), DIGEST, group)
        for slot in range(group.rank, 6, group.world_size):
            values, weight = client(slot)
            total.add(slot, values, weight, loss=0.5 + slot, seconds=slot / 100, samples=100 + slot)
        return total.reduce()

    alone = on_ranks(1, work)[0]
    for result in on_ranks(world, work):
        assert torch.equal(result.values, alone.values)
        assert (result.trained, result.refused, result.weight, result.samples) == (6, 0, 75, 615)
        assert result.loss == alone.loss
        assert np.allclose(result.client_seconds, np.arange(6) / 100)
        assert result.rank_seconds.sum() == pytest.approx(0.15)
    weights = torch.arange(10, 16, dtype=torch.float64)
    expected = (torch.stack([client(slot)[0] for slot in range(6)]).double() * weights[:, None]).sum(0) / 75
    torch.testing.assert_close(alone.values, expected.float())


def test_a_client_that_is_not_finite_is_refused_and_counted():
    def work(group):
        total = RoundSum(3, 3, 30, DIGEST, group)
        assert total.add(0, torch.tensor([1.0, 2, 3]), 10, 1.0, 0.0, 7)
        assert not total.add(1, torch.tensor([1.0, torch.nan, 3]), 10, 1.0, 0.0, 7)
        assert not total.add(2, torch.tensor([1.0, 2, 3]), 10, float("inf"), 0.0, 7)
        return total.reduce()

    result = on_ranks(1, work)[0]
    assert result.values.tolist() == [1, 2, 3]
    assert (result.trained, result.refused, result.weight, result.samples, result.loss) == (1, 2, 10, 7, 1.0)


@pytest.mark.parametrize("weight", [10, 2**26, 2**27, 2**40])
def test_losses_have_room_whatever_the_cohort_weighs(weight):
    def work(group):
        total = RoundSum(1, 2, 2 * weight, DIGEST, group)
        for slot in range(2):
            assert total.add(slot, torch.ones(1), weight, 1e9, 0.0, 7)
        return total.reduce()

    assert on_ranks(1, work)[0].loss == min(2.0**12, 2.0**37 / weight)


def test_a_round_in_which_everybody_is_refused_has_no_average():
    def work(group):
        total = RoundSum(1, 1, 10, DIGEST, group)
        total.add(0, torch.tensor([torch.nan]), 10, 1.0, 0.0, 7)
        return total.reduce()

    result = on_ranks(1, work)[0]
    assert result.values is None
    assert result.refused == 1


def test_a_rank_out_of_step_is_noticed_by_every_rank():
    def work(group):
        digest = DIGEST if group.rank != 1 else b"x" + DIGEST[1:]
        return RoundSum(2, 1, 1, digest, group).reduce()

    assert all(isinstance(result, RanksOutOfStepError) for result in on_ranks(3, work))


def test_no_number_of_ranks_makes_equal_masks_differ():
    with open_lone_group(0, MOST_RANKS, 8, RuntimeSettings(device="cpu")) as group:
        assert RoundSum(2, 1, 1, b"\xff" * 32, group).reduce().trained == 0


@pytest.mark.parametrize(
    ("asked", "void", "stopping", "abandoned"),
    [([], [], False, False), ([1], [], True, False), ([0, 1, 2], [2], True, True), ([], [0], True, True)],
)
def test_every_rank_learns_whether_one_was_asked_to_stop_or_left_its_part_out(asked, void, stopping, abandoned):
    def work(group):
        total = RoundSum(4, 3, 30, DIGEST, group)
        if group.rank in void:
            total.abandon()
        else:
            total.add(group.rank, torch.ones(4), 10, 0.5, 0.1, 10)
        result = total.reduce(group.rank in asked)
        return result.stopping, result.abandoned

    assert on_ranks(3, work) == [(stopping, abandoned)] * 3


class ShortGroup:
    """A group whose sums are short; ``widths`` are the bytes a value that they took."""

    def __init__(self, group):
        self._group, self._level, self.widths = group, ThreadLevel(group), []

    def __getattr__(self, name):
        return getattr(self._group, name)

    def is_short(self, count):
        return True

    def all_reduce_short(self, tensor):
        self.widths.append(all_reduce_short(tensor, self._level))


@pytest.mark.parametrize("world", [1, 2, 3, 16])
@pytest.mark.parametrize("with_sent", [False, True])
def test_short_sums_give_the_same_bits_in_fewer_bytes(world, with_sent):
    """Clients move away from what they were sent by less than 0.004, as the values of a round do."""
    sent = torch.randn(4096, generator=torch.Generator().manual_seed(99))
    moved = [0.004 * (torch.rand(4096, generator=torch.Generator().manual_seed(slot)) - 0.5) for slot in range(16)]

    def work(group, short):
        group = ShortGroup(group) if short else group
        total = RoundSum(4096, 16, 16 * 25, DIGEST, group, sent if with_sent else None)
        for slot in range(group.rank, 16, group.world_size):
            values = sent + moved[slot] if slot != 3 else torch.full((4096,), torch.nan)
            total.add(slot, values, 10 + slot, loss=0.5, seconds=0.1, samples=7)
        result = total.reduce()
        return result, group.widths if short else [8]

    whole = on_ranks(1, lambda group: work(group, False))[0][0]
    for result, widths in on_ranks(world, lambda group: work(group, True)):
        assert torch.equal(result.values, whole.values)
        assert (result.trained, result.refused, result.weight) == (15, 1, whole.weight)
        assert max(widths) < 5.1 or not with_sent  # blocks fill up to the number of ranks


def test_every_clients_loss_travels_where_it_is_asked_for():
    def work(group):
        total = RoundSum(1, 3, 30, DIGEST, group, with_losses=True)
        for slot, (value, loss) in enumerate([(1.0, 0.5), (torch.nan, 9.0), (2.0, 0.0)]):
            if slot % group.world_size == group.rank:
                total.add(slot, torch.tensor([value]), 10, loss, 0.0, 7)
        return total.reduce()

    for result in on_ranks(2, work):
        np.testing.assert_array_equal(result.client_losses, [0.5, np.nan, 0.0])
        assert result.values.tolist() == [1.5]
    assert on_ranks(1, lambda group: RoundSum(1, 3, 30, DIGEST, group).reduce())[0].client_losses is None
