"""Two clients of weight 1 and 3: their states, and collections over every kind of range, worked out by hand."""

import numpy as np
import pytest
import torch
from made_methods import messages_for
from thread_group import on_ranks
from torch import nn

from fedmef_dist.clients.client import ClientReport
from fedmef_dist.clients.cohort import Cohort
from fedmef_dist.clients.plan import RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sums.cohort_sum import CohortSum
from fedmef_dist.wire.encodings import Positions
from fedmef_dist.wire.ranges import parameters, prunable, small, statistics
from fedmef_dist.wire.traffic import Upload, at_positions, whole

COHORT = Cohort(np.arange(2), np.arange(2), np.array([1, 3]), np.array([1, 3]), dropped=0, late=0, surplus=0)


def network():
    """Six prunable weights of which two are active, two biases, four running statistics."""
    space = ParameterSpace(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False)), ["0.weight"])
    space.set_mask(Mask(torch.arange(6) < 2, 1))
    return space


def plan_of(space, returns_weights=True):
    collections = (
        at_positions("gradient", space, [1]),
        at_positions("wanted", space, [2], Positions(), has_votes=True),
        whole("control", parameters(space)),
        whole("statistics", statistics(space)),
        whole("loss", small(1)),
        whole("dense", prunable(space)),
    )
    return RoundPlan(1, space.values, collections=collections, returns_weights=returns_weights)


def report_of(space, client, plan, **changes):
    """Client 0 or 1: what it sends, as the server decodes it."""
    uploads = {
        "gradient": Upload(torch.tensor([2 + client]), torch.tensor([4.0])),
        "wanted": Upload(torch.tensor([3, 4 + client])),
        "control": Upload(None, torch.arange(8.0) * (1 + client)),
        "statistics": Upload(None, torch.full((4,), 2.0 * client)),
        "loss": Upload(None, torch.tensor([0.5 + client])),
        "dense": Upload(None, torch.ones(6)),
    } | changes
    messages = messages_for(space)
    decoded = {wanted.name: messages.collect(uploads[wanted.name], wanted) for wanted in plan.collections}
    state = torch.full((space.packed_size(plan.returns_weights),), 4.0 * client)
    return ClientReport(messages.return_state(state, returns_weights=plan.returns_weights), 1.0, 0.1, decoded)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("returns_weights", [True, False])
def test_every_collection_by_hand(world, returns_weights):
    def work(group):
        space = network()
        plan = plan_of(space, returns_weights)
        total = CohortSum(space, COHORT, plan, group)
        for slot in range(group.rank, 2, group.world_size):
            assert total.add(slot, report_of(space, slot, plan))
        result = total.reduce(stopping=False)
        return result, total.collect(result.weight), total.exchanges

    for result, sums, exchanges in on_ranks(world, work):
        assert result.values.tolist() == [3.0] * (8 if returns_weights else 6)
        assert sums["gradient"].mean().tolist() == [0, 0, 1, 3, 0, 0]
        assert sums["gradient"].votes is None
        assert sums["wanted"].share().tolist() == [0, 0, 0, 1, 0.25, 0.75]
        assert sums["wanted"].total is None
        # (1 * 1 + 3 * 2) / 4 = 1.75 of 0, 1, ..., 7; (1 * 0 + 3 * 2) / 4; (0.5 + 3 * 1.5) / 4.
        assert sums["control"].mean().tolist() == [1.75 * place for place in range(8)]
        assert sums["statistics"].mean().tolist() == [1.5] * 4
        assert sums["loss"].mean().tolist() == [1.25]
        assert sums["dense"].mean().tolist() == [1.0] * 6
        assert exchanges.keys() == sums.keys()
        assert (set(exchanges.values()) == {"none"}) == (world == 1)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 2.0**16])
def test_a_client_one_of_whose_numbers_cannot_be_summed_is_left_out_wholly(bad):
    def work(group):
        space = network()
        plan = plan_of(space)
        total = CohortSum(space, COHORT, plan, group)
        assert total.add(0, report_of(space, 0, plan))
        assert not total.add(1, report_of(space, 1, plan, loss=Upload(None, torch.tensor([bad]))))
        result = total.reduce(stopping=False)
        return result, total.collect(result.weight)

    ((result, sums),) = on_ranks(1, work)
    assert (result.trained, result.refused, result.weight) == (1, 1, 1)
    assert sums["gradient"].mean().tolist() == [0, 0, 4, 0, 0, 0]
    assert sums["wanted"].votes.tolist() == [0, 0, 0, 1, 1, 0]
    assert sums["control"].mean().tolist() == list(range(8))
