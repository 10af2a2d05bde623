import numpy as np
import torch
from torch import nn

from fedmef_dist.methods.base import Collection, RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.wire.ledger import WireBytes, WireLedger, WireSettings


def ledger(stateful):
    space = ParameterSpace(nn.Sequential(nn.Linear(10, 8, bias=False), nn.Linear(8, 2)), ["0.weight"])
    space.set_mask(Mask(torch.arange(80) % 4 == 0))
    return space, WireLedger(space, clients=5, settings=WireSettings(stateful_clients=stateful))


def test_the_mask_travels_once_to_each_client_until_it_changes():
    space, wire = ledger(stateful=True)
    # 20 of 80 weights and 18 others: values 4 * 38 = 152; the mask as a bitmap 10 bytes, a tag 1.
    first = wire.round(np.array([0, 1]), 2, space.mask, RoundPlan())
    assert (first.up, first.down) == (2 * 152, 2 * (152 + 11))
    second = wire.round(np.array([1, 2]), 2, space.mask, RoundPlan())
    assert second.down == 152 + (152 + 11)
    changed = space.mask.swap(torch.tensor([0]), torch.tensor([1]))
    assert wire.round(np.array([1, 2]), 2, changed, RoundPlan()).down == 2 * (152 + 11)


def test_stateless_clients_get_the_mask_every_time():
    space, wire = ledger(stateful=False)
    for _ in range(2):
        assert wire.round(np.array([3]), 1, space.mask, RoundPlan()).down == 152 + 11


def test_top_gradients_go_up_as_pairs():
    space, wire = ledger(stateful=True)
    # 2 of 80 positions at 7 bits: 2 bytes, a tag 1, values 8.
    assert wire.round(np.array([0]), 1, space.mask, RoundPlan(collections=(Collection("gradient", [2]),))).up == 163


def test_a_direction_goes_down_to_everybody_who_is_asked():
    space, wire = ledger(stateful=True)
    signs = torch.zeros(80, dtype=torch.int8)
    signs[:3] = torch.tensor([1, -1, 1])
    # Three positions of 7 bits make 3 bytes (8 rows with counts would need more), a tag 1, three signs 1.
    assert wire.round(np.array([0, 1]), 1, space.mask, RoundPlan(direction=signs)).down == 2 * (152 + 11 + 3 + 1 + 1)
    # 80 signs: a bitmap of 10 bytes, a tag, 10 bytes of signs.
    everywhere = RoundPlan(direction=torch.ones(80, dtype=torch.int8))
    assert wire.round(np.array([0, 1]), 1, space.mask, everywhere).down == 2 * (152 + 21)


def test_clients_with_masks_of_their_own_send_positions_with_their_weights():
    space, wire = ledger(stateful=True)
    plan = RoundPlan(client_masks=True, collections=(Collection("weights", [20], has_votes=True),))
    # 18 values of the tail, 20 weights, a bitmap of 10 bytes, a tag.
    assert wire.round(np.array([0]), 1, space.mask, plan).up == 4 * 18 + (4 * 20 + 10 + 1)


def test_a_dense_model_has_no_mask_to_send():
    _, wire = ledger(stateful=False)
    full = Mask(torch.ones(80, dtype=torch.bool))
    assert wire.round(np.array([0]), 1, full, RoundPlan()).down == 4 * 98


def test_who_did_not_answer_has_received_and_sends_nothing():
    space, wire = ledger(stateful=True)
    first = wire.round(np.array([0, 1, 2]), 1, space.mask, RoundPlan())
    assert (first.up, first.down) == (152, 3 * (152 + 11))
    assert wire.round(np.array([0, 1, 2]), 0, space.mask, RoundPlan()) == WireBytes(up=0, down=3 * 152)
