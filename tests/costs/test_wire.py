import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedmef_dist.costs.wire import (
    WireBytes,
    WireLedger,
    WireSettings,
    decode,
    encode,
    encoded_bytes,
    mask_bytes,
    position_bytes,
)
from fedmef_dist.methods.base import Collection, RoundPlan
from fedmef_dist.sparsity import Mask, ParameterSpace


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.001, 1), st.integers(0, 2**32 - 1))
def test_messages_decode_to_what_was_encoded_and_have_the_length_of_the_ledger(rows, columns, density, seed):
    generator = np.random.default_rng(seed)
    active = generator.random(rows * columns) < density
    values = generator.standard_normal(rows * columns).astype(np.float32)
    message = encode(values, active, rows)
    assert len(message) == encoded_bytes(active.size, int(active.sum()), rows)
    positions, decoded = decode(message, active.size, rows)
    received = np.zeros(active.size, np.float32)
    received[positions] = decoded
    assert np.array_equal(received, np.where(active, values, 0))


@pytest.mark.parametrize(("density", "kind"), [(1.0, 0), (0.2, 1), (0.001, 2), (0.02, 3)])
def test_every_encoding_has_its_density(density, kind):
    active = np.zeros(64 * 1024, bool)
    active[:: round(1 / density)] = True
    assert encode(np.ones(active.size, np.float32), active, 64)[0] == kind


def test_a_message_that_fits_no_count_is_refused():
    with pytest.raises(ValueError, match="unknown encoding"):
        decode(b"\x07abcd", 8, 2)
    with pytest.raises(ValueError, match="fits no count"):
        decode(b"\x02abc", 8, 2)


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
    assert (
        wire.round(np.array([0]), 1, space.mask, RoundPlan(collections=(Collection("gradient", [2]),))).up == 152 + 11
    )


def test_a_dense_model_has_no_mask_to_send():
    _, wire = ledger(stateful=False)
    full = Mask(torch.ones(80, dtype=torch.bool))
    assert wire.round(np.array([0]), 1, full, RoundPlan()).down == 4 * 98


def test_who_did_not_answer_has_received_and_sends_nothing():
    space, wire = ledger(stateful=True)
    first = wire.round(np.array([0, 1, 2]), 1, space.mask, RoundPlan())
    assert (first.up, first.down) == (152, 3 * (152 + 11))
    assert wire.round(np.array([0, 1, 2]), 0, space.mask, RoundPlan()) == WireBytes(up=0, down=3 * 152)


def test_positions_alone_by_hand():
    # 20 of 80 as a bitmap: 10 bytes and a tag; 2 of 80 at 7 bits: 2 bytes and a tag; all or none: the tag says so.
    assert [position_bytes(80, count, 8) for count in (20, 2, 80, 0)] == [11, 3, 1, 1]


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_positions_cost_what_their_encoding_costs_without_values(rows, columns, density):
    size = rows * columns
    count = round(density * size)
    assert 1 <= position_bytes(size, count, rows) <= 1 + -(-size // 8)
    assert encoded_bytes(size, count, rows) <= position_bytes(size, count, rows) + 4 * count


def test_a_mask_alone_is_the_sum_over_its_layers():
    space, _ = ledger(stateful=True)
    assert mask_bytes(space, [20]) == 11
