import pytest
import torch
from made_methods import messages_for
from torch import nn

from fedmef_dist.sparsity import ParameterSpace
from fedmef_dist.wire.encodings import Positions, Signs, Sparse, Whole, WithMask
from fedmef_dist.wire.ranges import prunable, small
from fedmef_dist.wire.traffic import Collection, Upload, at_positions, whole


@pytest.fixture
def space():
    """Layers of 64 and 32 weights."""
    return ParameterSpace(nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 8), nn.Linear(8, 2)), ["0.weight", "1.weight"])


def test_collections_of_positions_by_hand(space):
    plain, voted = at_positions("a", space, [3, 2]), at_positions("b", space, [3, 2], has_votes=True)
    assert (plain.name, plain.over, plain.counts) == ("a", prunable(space), [3, 2])
    assert (plain.has_values, plain.has_votes, plain.travels) == (True, False, True)
    assert (type(plain.encoding), type(voted.encoding)) == (Sparse, WithMask)
    assert not at_positions("c", space, [3, 2], Positions()).has_values


def test_a_whole_collection_has_every_position_of_its_blocks(space):
    everything = whole("a", prunable(space))
    assert (everything.counts, everything.has_values, everything.has_votes) == ([64, 32], True, False)
    assert isinstance(everything.encoding, Whole)
    assert whole("b", small(3)).counts == [3]
    assert whole("c", small(0)).counts == []


def test_who_did_not_name_a_position_never_votes_for_it(space):
    # 63 of 64: a dense message is the shortest, and would name the last one too.
    named = torch.cat([torch.arange(63), torch.arange(64, 96)])
    sent = Upload(named, torch.ones(95))
    voted = at_positions("weights", space, [63, 32], has_votes=True)
    assert messages_for(space).collect(sent, voted).positions.equal(named)
    plain = at_positions("gradient", space, [63, 32])
    received = messages_for(space).collect(sent, plain)
    assert received.positions.tolist() == list(range(96))
    assert received.values[63] == 0


def test_votes_need_an_encoding_that_tells_who_named_what(space):
    with pytest.raises(ValueError, match="the encoding of weights does not tell which positions were named"):
        Collection("weights", prunable(space), [3, 2], has_votes=True)
    for encoding in (WithMask(), Positions(), Signs(), Whole()):
        assert Collection("weights", prunable(space), [3, 2], encoding, has_votes=True).has_votes
    # What the server reads off other messages is never encoded.
    assert Collection("kept", prunable(space), [3, 2], has_votes=True, travels=False).has_votes


def test_how_many_positions_of_each_block_are_named(space):
    assert Upload(torch.tensor([0, 63, 64, 70, 95])).counts(prunable(space)) == [2, 3]
    assert Upload(None, torch.ones(96)).counts(prunable(space)) == [64, 32]


def test_a_copy_of_an_upload_has_tensors_of_its_own():
    sent = Upload(torch.arange(2), torch.ones(2))
    copied = sent.clone()
    sent.positions.zero_()
    sent.values.zero_()
    assert (copied.positions.tolist(), copied.values.tolist()) == ([0, 1], [1, 1])
    assert Upload(None).clone() == Upload(None, None)
