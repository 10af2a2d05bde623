"""Blocks by hand: convolutions of 4 filters (4 x 18) and 4 (4 x 9), an output layer of 14, 8 statistics of a norm."""

import pytest
from torch import nn

from fedmef_dist.layers.batchnorm import BatchNorm2d
from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.ranges import Block, Range, never_pruned, parameters, prunable, small, statistics

LAYERS = (Block(0, 72, 4, True), Block(72, 108, 4, True))


@pytest.fixture
def space():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Linear(4, 2)
    )
    return ParameterSpace(model, ["0.weight", "2.weight"])


def test_each_range_by_hand(space):
    # 108 prunable weights; 8 parameters of the norm and 10 of the output layer; 8 statistics.
    assert (space.n_prunable, space.n_parameters, space.total) == (108, 126, 134)
    assert prunable(space) == Range(LAYERS)
    assert parameters(space) == Range((*LAYERS, Block(108, 126)))
    assert never_pruned(space) == Range((Block(0, 26),), 108)
    assert statistics(space) == Range((Block(0, 8),), 126)
    assert small(5) == Range((Block(0, 5),))


def test_sizes(space):
    sizes = [found(space).size for found in (prunable, parameters, never_pruned, statistics)]
    assert sizes == [108, 126, 26, 8]
    assert [block.size for block in parameters(space).blocks] == [72, 36, 18]


def test_a_range_and_its_offset_find_the_numbers_in_the_flat_vector(space):
    for found in (never_pruned(space), statistics(space)):
        assert found.offset + found.size == space.total


def test_where_there_is_nothing_there_is_no_block():
    space = ParameterSpace(nn.Sequential(nn.Linear(2, 2, bias=False)), ["0.weight"])
    assert never_pruned(space).blocks == statistics(space).blocks == small(0).blocks == ()
    assert statistics(space).size == 0
    assert parameters(space) == prunable(space) == Range((Block(0, 4, 2, True),))
