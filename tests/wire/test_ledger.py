import numpy as np
import torch
from torch import nn

from fedmef_dist.sparsity import Mask, ParameterSpace
from fedmef_dist.sparsity.filter_swaps import count_in_filters
from fedmef_dist.wire.encodings import InFilters, Positions, Signs, WithMask
from fedmef_dist.wire.layer_encoding import FP16, FP32
from fedmef_dist.wire.ledger import WireBytes, WireLedger, WireSettings
from fedmef_dist.wire.ranges import parameters, prunable, small, statistics
from fedmef_dist.wire.traffic import Broadcast, Collection, at_positions, whole


def ledger(stateful=True, **settings):
    space = ParameterSpace(nn.Sequential(nn.Linear(10, 8, bias=False), nn.Linear(8, 2)), ["0.weight"])
    space.set_mask(Mask(torch.arange(80) % 4 == 0))
    return space, WireLedger(space, clients=5, settings=WireSettings(stateful_clients=stateful, **settings))


def test_the_mask_travels_once_to_each_client_until_it_changes():
    space, wire = ledger(stateful=True)
    # 20 of 80 weights and 18 others: values 4 * 38 = 152; the mask as a bitmap 10 bytes, a tag 1.
    first = wire.round(np.array([0, 1]), 2, space.mask)
    assert (first.up, first.down) == (2 * 152, 2 * (152 + 11))
    second = wire.round(np.array([1, 2]), 2, space.mask)
    assert second.down == 152 + (152 + 11)
    changed = space.mask.next(space.mask.swapped(torch.tensor([0]), torch.tensor([1])))
    assert wire.round(np.array([1, 2]), 2, changed).down == 2 * (152 + 11)


def test_who_knows_an_earlier_mask_is_not_told_what_filters_keep():
    space, wire = ledger(stateful=True)
    update = InFilters(space, count_in_filters(space, space.mask.index))
    # Nobody knows a mask yet, so the counts of filters travel too: a bitmap of 10 bytes, a tag 1.
    assert wire.round(np.array([0, 1]), 2, space.mask, mask_update=update).down == 2 * (152 + 11)
    changed = space.mask.next(space.mask.swapped(torch.tensor([0]), torch.tensor([1])))
    # Client 1 needs the bitmap alone; client 2 was never asked before.
    assert wire.round(np.array([1, 2]), 2, changed, mask_update=update).down == (152 + 10) + (152 + 11)
    assert wire.round(np.array([1, 2]), 2, changed, mask_update=update).down == 2 * 152


def test_stateless_clients_get_the_mask_every_time():
    space, wire = ledger(stateful=False)
    for _ in range(2):
        update = InFilters(space, count_in_filters(space, space.mask.index))
        assert wire.round(np.array([3]), 1, space.mask, mask_update=update).down == 152 + 11


def test_top_gradients_go_up_as_pairs():
    space, wire = ledger(stateful=True)
    # 2 of 80 positions at 7 bits: 2 bytes, a tag 1, values 8.
    assert wire.round(np.array([0]), 1, space.mask, (), (at_positions("gradient", space, [2]),)).up == 163


def test_what_varies_counts_as_long_as_it_was_or_is_expected_to_be():
    space, wire = ledger()
    weights, gradient = at_positions("weights", space, [20], varies=True), at_positions("gradient", space, [2])
    asked = np.array([0, 1])
    assert wire.round(asked, 2, space.mask, (), (weights, gradient), varied=90).up == 2 * 163 + 90
    # A bitmap of 10 bytes, a tag, 20 values.
    assert wire.round(asked, 2, space.mask, (), (weights, gradient)).up == 2 * (163 + 11 + 80)


def test_who_was_sent_a_part_of_a_mask_does_not_know_it():
    space, wire = ledger(stateful=True)
    part = Mask(space.mask.active & (torch.arange(80) < 40))
    # 10 weights and 18 others, 10 positions of 7 bits, a tag; and so again, since the next part is another one.
    for _ in range(2):
        assert wire.round(np.array([0]), 1, part, is_part=True).down == 4 * 28 + 9 + 1
    assert wire.round(np.array([0]), 1, space.mask).down == 152 + 11


def test_a_direction_goes_down_to_everybody_who_is_asked():
    space, wire = ledger(stateful=True)
    signs = torch.zeros(80)
    signs[:3] = torch.tensor([1.0, -1, 1])
    sent = Broadcast("direction", prunable(space), signs, Signs())
    # Three positions of 7 bits make 3 bytes (8 rows with counts would need more), a tag 1, three signs 1.
    assert wire.round(np.array([0, 1]), 1, space.mask, (sent,)).down == 2 * (152 + 11 + 3 + 1 + 1)
    # 80 signs: a bitmap of 10 bytes, a tag, 10 bytes of signs.
    everywhere = Broadcast("direction", prunable(space), torch.ones(80), Signs())
    assert wire.round(np.array([0, 1]), 1, space.mask, (everywhere,)).down == 2 * (152 + 21)


def test_clients_with_masks_of_their_own_send_positions_with_their_weights():
    space, wire = ledger(stateful=True)
    weights = at_positions("weights", space, [20], WithMask(), has_votes=True)
    # 18 values of the tail, 20 weights, a bitmap of 10 bytes, a tag.
    assert wire.round(np.array([0]), 1, space.mask, (), (weights,), returns_weights=False).up == 4 * 18 + (
        4 * 20 + 10 + 1
    )


def test_a_dense_model_has_no_mask_to_send():
    _, wire = ledger(stateful=False)
    full = Mask(torch.ones(80, dtype=torch.bool))
    assert wire.round(np.array([0]), 1, full).down == 4 * 98


def test_who_did_not_answer_has_received_and_sends_nothing():
    space, wire = ledger(stateful=True)
    first = wire.round(np.array([0, 1, 2]), 1, space.mask)
    assert (first.up, first.down) == (152, 3 * (152 + 11))
    assert wire.round(np.array([0, 1, 2]), 0, space.mask) == WireBytes(up=0, down=3 * 152)


def test_what_is_broadcast_by_hand():
    space, wire = ledger()
    chosen = torch.arange(80) < 2
    # Positions as COO of 7 bits, a tag; everything: 98 parameters of 4 bytes; nothing at all takes nothing.
    assert wire.broadcast_bytes(Broadcast("wanted", prunable(space), chosen, Positions())) == 1 + 2
    assert wire.broadcast_bytes(Broadcast("control", parameters(space), torch.zeros(98))) == 4 * 98
    assert wire.broadcast_bytes(Broadcast("none", small(0), torch.zeros(0))) == 0


def test_the_type_of_the_uplink_is_for_prunable_blocks_alone():
    space, wire = ledger(uplink_values="fp16")
    # 80 prunable weights of 2 bytes, 18 other parameters of 4.
    assert wire.collection_bytes(whole("control", parameters(space))) == 2 * 80 + 4 * 18
    assert wire.collection_bytes(whole("losses", small(3))) == 4 * 3
    assert wire.collection_bytes(whole("statistics", statistics(space))) == 0  # the model has none
    assert [wire.number(block) for block in parameters(space).blocks] == [FP16, FP32]
    # What goes down is fp32.
    assert wire.broadcast_bytes(Broadcast("control", parameters(space), torch.zeros(98))) == 4 * 98


def test_what_the_server_reads_off_other_messages_takes_no_byte():
    space, wire = ledger()
    kept = at_positions("kept", space, [2], Positions(), has_votes=True, travels=False)
    assert wire.collection_bytes(kept) == 0
    assert wire.collection_bytes(Collection("kept", prunable(space), [2], Positions())) == 1 + 2


def test_a_model_of_its_own_comes_up_with_its_mask():
    space, wire = ledger(uplink_values="fp16")
    assert wire.returned_bytes(space.mask) == 4 * 18 + (2 * 20 + 10 + 1)
    # That it is full takes a tag.
    assert wire.returned_bytes(Mask(torch.ones(80, dtype=torch.bool))) == 4 * 18 + (2 * 80 + 1)


def test_who_knows_which_mask_is_remembered():
    space, wire = ledger()
    wire.round(np.array([1, 3]), 2, Mask(space.mask.active, 7))
    assert wire.state()["known_version"].tolist() == [-1, 7, -1, 7, -1]
    _, other = ledger()
    other.restore({name: tensor.clone() for name, tensor in wire.state().items()})
    assert other.round(np.array([1]), 1, Mask(space.mask.active, 7)).down == 152
